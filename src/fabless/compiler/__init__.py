"""The compiler: from a decoder to programs for tiles, in passes that keep every bit.

How to get a program, a memory image and the parameters of a launch:

    from fabless.compiler.driver import Shape, compile
    from fabless.compiler.launch import Segment
    from fabless.compiler.pack import pack
    from fabless.model.integer_reference import IntegerWeights
    from fabless.model.weights import open_weights
    from fabless.program.tile import TINY

    weights = IntegerWeights.load(open_weights("tinyshakes"))
    compiled = compile(weights.decoder, TINY, context_tokens=256)
    program = compiled.program()                                      # decode: one sequence, one token
    layout = compiled.layouts[0]
    memory = np.zeros(layout.memory_bytes, np.uint8)                  # one tile's DRAM: image, then logits, workspace, cache of zeros
    pack(layout, weights, memory[: layout.image_bytes])
    parameters = compiled.parameters(Shape(1, 1), [Segment(tokens=[7], position=0, pages=[0, 1])])
    state = execute(program, memory, parameters=parameters)           # sim.machine; memory keeps the cache for the next launch
    logits = state.read(program, "logits")[0, : weights.decoder.n_vocab]

`sequence.parameter_words(program, parameters)` gives the 32-bit words that the host writes. A ring of tiles has one layout, image and program each.
"""
