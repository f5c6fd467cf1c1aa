"""The benchmark suite: every figure is a ratio to a peer that was measured in the same run.

    python -m benchmarks                                                   # everything, as `make bench`
    python -m benchmarks --only updates --models resnet18 --repeats 20     # one section
    python -m benchmarks --quick                                           # every section, tiny: does it run?

Sections: ``updates``, ``compiling``, ``recompiles``, ``sweeps``, ``memory``. Each prints a table and writes
``<section>.md``, ``<section>.json`` and ``<section>.png`` into ``benchmarks/results/``. Every contender lives in a
process of its own (:mod:`benchmarks.worker`), so that one that is missing, fails or takes too long is skipped with a
line that says why.
"""
