"""From run folders to summaries, MLflow runs, tables, figures and one HTML report. Torch-free.

Every module reads files only: `summary` reads run folders, `tables` and `figures` read what
`summary` wrote, `report` reads what those wrote, `mlflow` copies all of it to MLflow.
"""
