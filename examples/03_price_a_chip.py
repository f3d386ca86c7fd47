"""What does a packaged, tested chip cost, part by part, and what did it cost to design?"""

from fabless import harden, load_chip
from fabless.cost.price import chip_cost
from fabless.report.figures import percent, usd_range

chip = load_chip("a100")
cost = chip_cost(harden(chip), chip)  # as if we had it made: nobody publishes what NVIDIA pays
print(f"{cost.name}: {cost.dies_per_wafer} dies on a wafer, {percent(cost.die_yield_ratio.mid)} of them good (harvested ones included)")
for line in cost.lines:
    print(f"   {line.label:<34} {usd_range(line.usd)}")
print(f"   {'cost, before its maker adds a margin':<34} {usd_range(cost.cost_usd)}")
print("once, for the design:")
for line in cost.nre:
    print(f"   {line.label:<34} {usd_range(line.usd)}")
