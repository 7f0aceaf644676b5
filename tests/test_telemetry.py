import pytest
import torch

from iet_agc.runtime.exposure import read_telemetry, write_telemetry


def test_counts_come_back_in_the_order_of_the_training_set(tmp_path):
    file = tmp_path / "telemetry.csv"
    shards = [torch.tensor([1, 3]), torch.tensor([0, 2])]
    write_telemetry(
        file, shards, [torch.tensor([10, 30]), torch.tensor([0, 20])], [torch.tensor([1, 3]), torch.tensor([0, 2])]
    )
    assert file.read_text().splitlines()[:3] == ["image,member,seen,skipped", "0,1,0,0", "1,0,10,1"]
    seen, skipped = read_telemetry(file)
    assert seen.tolist() == [0, 10, 20, 30]
    assert skipped.tolist() == [0, 1, 2, 3]


HEAD = "image,member,seen,skipped\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("image,member,seen\n0,0,1\n", "'skipped'"),
        (HEAD + "0,0,many,1\n", "'many' is no count"),
        (HEAD + "0,0,5,-1\n", "'-1' is no count"),
        (HEAD + "0,0,-5,-6\n", "'-5' is no count"),
        (HEAD + "0,0,5,1\n1,0,5,6\n", "line 3 says skipped 6, more than seen 5"),
        (HEAD + "0,0,5.0,1\n", "'5.0' is no count"),
        (HEAD + "0,0,1_000,1\n", "'1_000' is no count"),
        (HEAD + f"0,0,{2**63},1\n", "is no count"),
        (HEAD + "0,0,5,1\n0,0,5,1\n", "line 3 is that of image 0, not 1"),
        (HEAD + "1,0,5,1\n0,0,5,1\n", "line 2 is that of image 1, not 0"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, content, reason):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ValueError, match=r"t\.csv is not a table of image, member, seen, skipped") as error:
        read_telemetry(tmp_path / "t.csv")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
