// Streams vectors through one block: a row of 32-bit words in from a file for every cycle, a row out to a file as the outputs stand before the clock rises.
// `leaf.py` puts the block's ports in place of the words in capitals.
#include "VTOP.h"
#include "verilated.h"
#include <cstdint>
#include <cstdio>
#include <vector>

static const size_t N_IN = WORDS_IN, N_OUT = WORDS_OUT, ROWS = 1 << 14;

int main(int argc, char** argv) {
    if (argc != 3) { fprintf(stderr, "usage: %s VECTORS RESULTS\n", argv[0]); return 1; }
    FILE *in = fopen(argv[1], "rb"), *out = fopen(argv[2], "wb");
    if (!in || !out) { perror("open"); return 1; }
    VerilatedContext context;
    VTOP top(&context);
    std::vector<uint32_t> rows(N_IN * ROWS), results(N_OUT * ROWS);
    for (size_t n; (n = fread(rows.data(), 4 * N_IN, ROWS, in)) > 0;) {
        const uint32_t* i = rows.data();
        uint32_t* o = results.data();
        for (size_t row = 0; row < n; row++) {
            SETS
            top.clk = 0;
            top.eval();
            GETS
            top.clk = 1;
            top.eval();
        }
        fwrite(results.data(), 4 * N_OUT, n, out);
    }
    return fclose(out);
}
