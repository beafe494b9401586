"""A report for people and for machines: the ledger, pages, charts, pictures and files for CI. Decides nothing."""
