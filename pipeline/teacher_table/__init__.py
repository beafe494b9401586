"""The teacher's answers to exactly the views that a student will see, stored once and read by every later student.

`key.py` says whose answers to what a table holds; `storage.py` lays it out in files; `build.py` fills them and goes on
where a killed build stopped; `table.py` answers from them in place of a live teacher; `slices.py` makes the views;
`decide.py` weighs a table against running the teacher at every step.
"""
