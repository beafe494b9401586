"""Tasks by name: metric, outcomes and gate unit of each. Add a task: one file and one row here."""

TASKS = {"classification": "pipeline.tasks.classification:Classification"}
