"""Pages from audits. No torch."""
