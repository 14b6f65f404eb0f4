"""The tasks: a file each, called as the task, with `TASK` in it."""
