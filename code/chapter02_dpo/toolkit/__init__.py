"""What the five scripts share, and what is not the chapter.

Imports run downwards only: a module imports from the floors below its own, and from nothing else of ours.

    floor 7  report, fit_judge              the page output/report.html; the judge's weights, from labels
    floor 6  compare, heldout               how two models differ, and whether by chance; held-out pairs
    floor 5  training, measure, pairs, sources  the trainer's parts; what a model does; where data, models come from
    floor 4  judge, chat, forms, checkpoints, trial
    floor 3  models                         load, ask, score
    floor 2  files, curves                  whole-or-absent writing, the lock; the pictures
    floor 1  paths, console                 where things are; flags, one-line errors, Ctrl-C

1-generate_data.py uses none of it: it is the file that readers edit, and needs the standard library only.
"""
