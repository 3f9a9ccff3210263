"""`python -m instantstyle.train.emoji.staged prepare base ...`, or by torchrun with `-m`."""

from instantstyle.train.emoji.staged.stages import main

main()
