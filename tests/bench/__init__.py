"""The figures of Haltline, each beside its baseline, measured in one run on one machine.

`make bench` prints the table and writes docs/figures.json and docs/figures.png; `make bench-quick` is the same with
small counts, written below build/. Each part is a module with a `measure(quick)`, run in a process of its own.
"""
