"""The bundle: one file with everything that a device needs to measure a run's artifacts and to judge them.

`pack` makes it on the host, `verify` and `contents` look into it, `device` measures what is in it where it will run,
`join` brings the record back to the run. None of them needs torch but `pack`, which reads the run's data set.
"""
