"""Fuzzing of every reader of files: hostile inputs end in one sentence with the file's name, soon and in little memory.

    python -m tests.fuzz --seconds 60        mutations of good and hostile files, on all cores
    python -m tests.fuzz --inputs 1000000    as many inputs
    python -m tests.fuzz --full              an hour
    python -m tests.fuzz --kind card.json    files of one kind
    python -m tests.fuzz --guided npz        guided by coverage, where atheris is installed, until Ctrl-C

What a reader may do is in `runner.py`.  An input that breaks it is kept and belongs into corpus/, which every run and
the normal tests try first.
"""
