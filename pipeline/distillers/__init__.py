"""What is trained, and what it learns from: one file a way of distilling.

`learner.py` is the frame that the training loop knows; `offline.py` one student under a fixed teacher (or none),
`mutual.py` students that teach each other, `exits.py` one network whose deepest exit teaches the shallower ones.
`teacher.py` answers for a live teacher; `pipeline.teacher_table` answers from disk in its place. `together.py` lets
several processes train a learner.
"""
