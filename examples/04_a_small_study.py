"""Answer the edge study on a small space: which chip to build for one small model in a 25 W appliance?

The same from a shell, on the whole space: fabless design examples/edge.toml
"""

from dataclasses import replace
from pathlib import Path

from fabless import conclude, design, read_study

study = read_study(Path(__file__).with_name("edge.toml"))
space = replace(study.space, process=("7nm",), clock_hz=study.space.clock_hz[:2], scratchpad_bytes=study.space.scratchpad_bytes[:1])
small = replace(study, space=space, compare=("nvidia_l4",))

if __name__ == "__main__":  # design uses this machine's cores
    frontier = design(small)
    found = conclude(frontier)
    print(f"{frontier.counts.points:,} points of {frontier.counts.designs:,} chips, {frontier.counts.front} on the front")
    print(found.headline)
    for binding in found.binding[:2]:
        print(f"   {binding.description}")
    for loser in found.runners_up[:3]:
        print(f"   {loser.label}: {loser.reason}")
