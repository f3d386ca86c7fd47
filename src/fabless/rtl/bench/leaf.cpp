// Streams vectors through one leaf: pairs of 32-bit words in from a file, one 32-bit word each out to a file, FL_LATENCY cycles later.
// `first` goes to the leaf's input FL_FIRST, `second` to FL_SECOND.
#include FL_HEADER
#include "verilated.h"
#include <cstdint>
#include <cstdio>
#include <vector>

int main(int argc, char** argv) {
    if (argc != 3) { fprintf(stderr, "usage: %s VECTORS RESULTS\n", argv[0]); return 1; }
    FILE *in = fopen(argv[1], "rb"), *out = fopen(argv[2], "wb");
    if (!in || !out) { perror("open"); return 1; }
    VerilatedContext context;
    FL_CLASS top(&context);
    std::vector<uint32_t> block(1 << 17), results;
    uint64_t taken = 0;
    auto tick = [&](uint32_t first, uint32_t second) {
        top.FL_FIRST = first;
        top.FL_SECOND = second;
        top.clk = 0;
        top.eval();
        if (taken++ >= FL_LATENCY) results.push_back(top.y);
        top.clk = 1;
        top.eval();
    };
    for (size_t n; (n = fread(block.data(), 8, block.size() / 2, in)) > 0;) {
        for (size_t i = 0; i < n; i++) tick(block[2 * i], block[2 * i + 1]);
        fwrite(results.data(), 4, results.size(), out);
        results.clear();
    }
    for (int i = 0; i < FL_LATENCY; i++) tick(0, 0);
    fwrite(results.data(), 4, results.size(), out);
    fclose(out);
    return 0;
}
