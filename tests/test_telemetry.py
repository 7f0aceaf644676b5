import pytest
import torch

from iet_agc.telemetry import read_telemetry, write_telemetry


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


@pytest.mark.parametrize("content", ["image,member,seen\n0,0,1\n", "image,member,seen,skipped\n0,0,many,1\n"])
def test_a_damaged_table_is_named(tmp_path, content):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ValueError, match=r"t\.csv is not a table of image, member, seen, skipped"):
        read_telemetry(tmp_path / "t.csv")
