"""How long does one decode step of Llama-3.1-8B take on one H100 and on four, and what bounds it?

The same from a shell: fabless estimate llama-3.1-8b --chip h100 --batch 32 --context 1024 --tp 1
"""

from fabless import Plan, Recipe, Step, estimate, load_chip, load_model, lower
from fabless.core.units import si

graph = lower(load_model("llama-3.1-8b"), Recipe.named("bf16"), Step.decode(batch=32, context_tokens=1024))
for tensor in (1, 4):
    trace = estimate(graph, load_chip("h100"), Plan(tensor=tensor))
    print(
        f"{trace.n_chips} chips: {si(trace.latency_s, 's')} a step, {trace.tokens_per_s:,.0f} tokens/s, {si(trace.memory_bytes, 'B')} a chip"
    )
    for event in sorted(trace.events, key=lambda e: -e.cycles)[:4]:
        print(f"   {event.name:<22} {event.cycles / trace.cycles:6.1%}  bound by {event.bound}")
