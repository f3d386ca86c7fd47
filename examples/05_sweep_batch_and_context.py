"""Time 48 decode steps on three chips in one call: how throughput grows with the batch, and what long contexts take away."""

from fabless import Recipe, Step, load_chip, load_model, lower
from fabless.sim.many import estimate_many

BATCHES, CONTEXTS = (1, 2, 4, 8, 16, 32, 64, 128), (512, 1024, 2048, 4096, 8192, 16384)
chips = [load_chip(name) for name in ("l4", "h100", "mi300x")]
model, recipe = load_model("qwen3-8b"), Recipe.named("bf16")
graphs = [lower(model, recipe, Step.decode(batch, context)) for context in CONTEXTS for batch in BATCHES]
found = estimate_many(graphs, chips)
speed = found.tokens_per_s.reshape(len(CONTEXTS), len(BATCHES), len(chips))
fits = found.feasible.reshape(speed.shape)
for k, chip in enumerate(chips):
    print(f"{chip.name}, tokens/s\n   context  " + "".join(f"  batch {batch:<4}" for batch in BATCHES))
    for i, context in enumerate(CONTEXTS):
        print(f"   {context:>7}  " + "".join(f"{speed[i, j, k]:>11,.0f} " if fits[i, j, k] else f"{'-':>11} " for j in range(len(BATCHES))))
