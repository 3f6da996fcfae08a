"""What a run is about: `task.py` says what a task has to tell, each other file is one task.

`conf/task/NAME.yaml` names the class of a task: `python train.py task=NAME`.
"""
