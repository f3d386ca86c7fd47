"""Which of the catalogue's chips decodes Llama-3.1-70B in fp8 best, with as many of them as its memory needs?"""

from fabless import Plan, Recipe, Step, estimate, load_chip, load_model, lower
from fabless.chip.catalogue import chip_names
from fabless.core.errors import InfeasibleError, UnsupportedError

graph = lower(load_model("llama-3.1-70b"), Recipe.named("fp8"), Step.decode(batch=32, context_tokens=2048))
rows = []
for chip in map(load_chip, chip_names()):
    for tensor in (1, 2, 4, 8):
        try:
            trace = estimate(graph, chip, Plan(tensor=tensor))
        except (InfeasibleError, UnsupportedError):
            continue  # does not fit, or does not multiply such numbers
        rows.append((trace.tokens_per_s / tensor, tensor, chip.name, trace.latency_s))
        break
for speed, tensor, name, latency_s in sorted(rows, reverse=True):
    print(f"{speed:8,.0f} tokens/s a chip  {1 / latency_s:6.1f} a user  {tensor} × {name}")
