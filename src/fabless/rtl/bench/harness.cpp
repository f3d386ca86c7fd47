// The host and the memory around one simulated tile. Commands come as lines on standard input, answers go to standard output.
//
//   program FILE      write program memory (16 bytes a word, little endian); words that it holds already are left out
//   parameters FILE   write parameter memory (4 bytes a word), likewise
//   memory LATENCY BEATS CYCLES PERIOD BUSY
//                     answers come LATENCY cycles after their request; BEATS beats in CYCLES cycles; refresh: BUSY of every PERIOD cycles
//   trace FILE        from now on write (cycle, queues that started an instruction) as two 8-byte integers for each such cycle; "-" ends it
//   sync              answers "ready" when all before it is done
//   run LIMIT         start, wait until done; answers "at CYCLES" now and then, at last "done CYCLES SECONDS" or "limit CYCLES SECONDS" (of processor time)
//   coverage FILE     in a build with coverage: write what was covered so far, as Verilator's database
//   quit
//
// Memory is a file that is mapped and shared with the caller. Bytes behind its end read as zero and are not written.
#include "Vfl_tile.h"
#include "verilated.h"
#if VM_COVERAGE
#include "verilated_cov.h"
#endif
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

static const uint64_t WIDTH = FL_WIDTH;

struct Model {
    uint64_t latency = 1, beats = 1, cycles = 1, period = 0, busy = 0;
    bool ready(uint64_t t) const {
        if (period && t % period < busy) return false;
        return (t + 1) * beats / cycles != t * beats / cycles;
    }
};

static uint8_t* words(uint32_t* wide) { return reinterpret_cast<uint8_t*>(wide); }
template <typename T> static uint8_t* bytes(T& port) { return reinterpret_cast<uint8_t*>(&port); }

static std::vector<uint8_t> content(const char* name) {
    FILE* f = fopen(name, "rb");
    if (!f) { perror(name); exit(1); }
    std::vector<uint8_t> data;
    uint8_t block[65536];
    for (size_t n; (n = fread(block, 1, sizeof block, f)) > 0;) data.insert(data.end(), block, block + n);
    fclose(f);
    return data;
}

struct Bench {
    VerilatedContext context;
    Vfl_tile* top;
    Model model;
    uint8_t* memory;
    uint64_t size;
    FILE* trace = nullptr;
    std::vector<uint8_t> held[2];  // what parameter and program memory hold
    std::vector<uint64_t> due, address;  // a ring of requests on their way
    uint64_t head = 0, tail = 0, time = 0;

    void tick() {
        top->clk = 1;
        top->eval();
        top->clk = 0;
        top->eval();
    }
    void write(bool program, uint32_t at, const uint8_t* data, size_t n) {
        top->host_program = program;
        top->host_parameter = !program;
        top->host_address = at;
        memset(bytes(top->host_data), 0, 16);
        memcpy(bytes(top->host_data), data, n);
        tick();
        top->host_program = top->host_parameter = 0;
    }
    void load(bool program, const char* file) {
        const size_t n = program ? 16 : 4;
        const std::vector<uint8_t> data = content(file);
        std::vector<uint8_t>& before = held[program];
        if (before.size() < data.size()) before.resize(data.size(), 0);  // memories are zero at power-up
        for (size_t i = 0; i + n <= data.size(); i += n) {
            if (!memcmp(&before[i], &data[i], n)) continue;
            memcpy(&before[i], &data[i], n);
            write(program, i / n, &data[i], n);
        }
    }
    // One cycle with time `t`: ports that the tile drives are stable, ports that we drive are set before the edge.
    void cycle(uint64_t t) {
        const bool ready = model.ready(t);
        top->read_ready = ready;
        top->write_ready = ready;
        top->answer_valid = 0;
        if (head != tail && due[head % due.size()] <= t) {
            const uint64_t a = address[head % due.size()];
            uint8_t* out = bytes(top->answer_data);
            if (a + WIDTH <= size) memcpy(out, memory + a, WIDTH);
            else for (uint64_t i = 0; i < WIDTH; i++) out[i] = a + i < size ? memory[a + i] : 0;
            top->answer_valid = 1;
            head++;
        }
        // No output depends on an input within a cycle: what the last evaluation left is what memory sees.
        if (top->write_valid && ready) {
            const uint64_t a = top->write_address;
            const uint8_t *data = bytes(top->write_data), *strobe = bytes(top->write_strobe);
            for (uint64_t i = 0; i < WIDTH; i++)
                if (strobe[i / 8] >> i % 8 & 1 && a + i < size) memory[a + i] = data[i];
        }
        if (top->read_valid && ready) {
            address[tail % due.size()] = top->read_address;
            due[tail % due.size()] = t + model.latency;
            tail++;
        }
        if (trace && top->popped) {
            const uint64_t row[2] = {t, top->popped};
            fwrite(row, sizeof row, 1, trace);
        }
        tick();
    }
    bool run(uint64_t limit) {
        due.assign(4096, 0);
        address.assign(4096, 0);
        head = tail = 0;
        top->start = 1;
        tick();
        top->start = 0;
        top->eval();
        for (uint64_t t = 0; t < limit; t++) {
            cycle(t);
            if (!(~t & 0xfffff)) {
                printf("at %llu\n", (unsigned long long)t);
                fflush(stdout);
            }
            if (top->done) {
                if (trace) fflush(trace);
                return true;
            }
        }
        return false;
    }
};

int main(int argc, char** argv) {
    if (argc < 2) { fprintf(stderr, "usage: %s MEMORY [+dump=DIRECTORY]\n", argv[0]); return 1; }
    Bench b;
    b.context.commandArgs(argc, argv);
    b.top = new Vfl_tile(&b.context);
    const int file = open(argv[1], O_RDWR);
    struct stat info;
    if (file < 0 || fstat(file, &info)) { perror(argv[1]); return 1; }
    b.size = info.st_size;
    b.memory = static_cast<uint8_t*>(mmap(nullptr, b.size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    if (b.memory == MAP_FAILED) { perror("mmap"); return 1; }
    b.top->rst = 1;
    for (int i = 0; i < 4; i++) b.tick();
    b.top->rst = 0;
    b.tick();
    char line[4096], name[4096];
    while (fgets(line, sizeof line, stdin)) {
        unsigned long long v[5];
        if (sscanf(line, "program %4095s", name) == 1) b.load(true, name);
        else if (sscanf(line, "parameters %4095s", name) == 1) b.load(false, name);
        else if (!strncmp(line, "sync", 4)) {
            puts("ready");
            fflush(stdout);
        } else if (sscanf(line, "memory %llu %llu %llu %llu %llu", v, v + 1, v + 2, v + 3, v + 4) == 5) {
            b.model.latency = v[0], b.model.beats = v[1], b.model.cycles = v[2], b.model.period = v[3], b.model.busy = v[4];
        } else if (sscanf(line, "trace %4095s", name) == 1) {
            if (b.trace) fclose(b.trace);
            b.trace = strcmp(name, "-") ? fopen(name, "wb") : nullptr;
        } else if (sscanf(line, "run %llu", v) == 1) {
            const clock_t begin = clock();
            const bool done = b.run(v[0]);
            const double seconds = double(clock() - begin) / CLOCKS_PER_SEC;
            printf("%s %llu %.6f\n", done ? "done" : "limit", (unsigned long long)b.top->cycles, seconds);
            fflush(stdout);
        }
#if VM_COVERAGE
        else if (sscanf(line, "coverage %4095s", name) == 1) b.context.coveragep()->write(name);
#endif
        else if (!strncmp(line, "quit", 4)) break;
        else { fprintf(stderr, "unknown command: %s", line); return 1; }
    }
    if (b.trace) fclose(b.trace);
    b.top->final();
    return 0;
}
