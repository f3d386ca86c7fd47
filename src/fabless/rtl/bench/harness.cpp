// The host and the memories around a ring of simulated tiles, one tile a memory file. Commands come as lines on standard input, answers go to standard
// output.
//
//   tile I            the commands below are for tile I (at first 0); link, sync, run and quit are for all
//   program FILE      write program memory (16 bytes a word, little endian); words that it holds already are left out
//   parameters FILE   write parameter memory (4 bytes a word), likewise
//   memory LATENCY BEATS CYCLES PERIOD BUSY BANKS ROW_BYTES ACTIVATE PRECHARGE ROW_CYCLES
//                     answers come LATENCY cycles after their request; BEATS beats in CYCLES cycles; refresh: BUSY of every PERIOD cycles;
//                     BANKS above 0: rows of ROW_BYTES in banks that must be open, reads and writes apart (the rules of MemoryModel and Banks)
//   trace FILE        from now on write (cycle, queues that started an instruction) as two 8-byte integers for each such cycle; "-" ends it
//   counters          answers "counters N..." of the last run, in the order of rtl/counters.py
//   sync              answers "ready" when all before it is done
//   link LATENCY      beats and credits arrive LATENCY cycles after they left
//   run LIMIT         start all in one cycle, wait until all are done; answers "at CYCLES" now and then, at last "done SECONDS CYCLES..." or
//                     "limit SECONDS CYCLES...": seconds of processor time, cycles of each tile
//   quit
//
// Memory is a file that is mapped and shared with the caller. Bytes behind its end read as zero and are not written.
#include "Vfl_tile.h"
#include "verilated.h"
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <deque>
#include <fcntl.h>
#include <sys/mman.h>
#include <string>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

static const uint64_t WIDTH = FL_WIDTH, LINK = FL_LINK;

struct Model {
    uint64_t latency = 1, beats = 1, cycles = 1, period = 0, busy = 0;
    uint64_t banks = 0, row_bytes = 256, activate = 0, precharge = 0, row_cycles = 0;
    bool slot(uint64_t t) const { return (t + 1) * beats / cycles != t * beats / cycles; }
    bool ready(uint64_t t) const { return outside_refresh(t) == t && slot(t); }
    uint64_t outside_refresh(uint64_t t) const { return period && t % period < busy ? t + busy - t % period : t; }
};

// The banks of one channel. A beat offered in cycle t may use its row in cycle `usable(t)`; beats come in order.
struct Banks {
    std::vector<uint64_t> row, at;
    std::vector<bool> used;
    uint64_t next_answer = 0;
    void reset(const Model& m) {
        row.assign(m.banks, 0), at.assign(m.banks, 0), used.assign(m.banks, false);
        next_answer = 0;
    }
    uint64_t usable(const Model& m, uint64_t t, uint64_t address) {
        const uint64_t r = address / m.row_bytes, b = r % m.banks;
        uint64_t c = m.outside_refresh(t);
        const bool open = used[b] && (!m.period || c / m.period == at[b] / m.period);
        if (open && row[b] == r) return std::max(c, at[b] + m.activate);
        if (open) c += m.precharge;
        if (used[b]) c = std::max(c, at[b] + m.row_cycles);
        c = m.outside_refresh(c);
        used[b] = true, row[b] = r, at[b] = c;
        return c + m.activate;
    }
    uint64_t answer(const Model& m, uint64_t t, uint64_t address) {
        uint64_t c = std::max(usable(m, t, address) + m.latency, next_answer);
        while (!m.slot(c)) c++;
        next_answer = c + 1;
        return c;
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

static const int N_COUNTERS = 24;  // as many as rtl/counters.py has

struct Beat {
    uint64_t due;
    uint8_t data[LINK];
};

struct Bench {
    VerilatedContext context;
    Bench *before = this, *behind = this;  // neighbours in the ring
    uint64_t link_latency = 1;
    std::deque<Beat> beats;         // on their way to this tile
    std::deque<uint64_t> credits;  // likewise: when they arrive
    Vfl_tile* top;
    Model model;
    uint8_t* memory;
    uint64_t size;
    FILE* trace = nullptr;
    std::vector<uint8_t> held[2];  // what parameter and program memory hold
    std::vector<uint64_t> due, address;  // a ring of requests on their way
    uint64_t head = 0, tail = 0, time = 0;
    Banks reads, writes;
    bool waiting = false;  // a write that was offered and is taken in cycle `taken`
    uint64_t taken = 0;

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
    // What leaves in cycle `t` arrives in a later one, so that the order in which tiles are driven does not matter.
    void drive_links(uint64_t t) {
        if (top->link_valid) {
            Beat beat;
            beat.due = t + link_latency;
            memcpy(beat.data, bytes(top->link_data), LINK);
            behind->beats.push_back(beat);
        }
        if (top->credit_out) before->credits.push_back(t + link_latency);
        top->arrive_valid = !beats.empty() && beats.front().due <= t;
        if (top->arrive_valid) {
            memcpy(bytes(top->arrive_data), beats.front().data, LINK);
            beats.pop_front();
        }
        top->credit = !credits.empty() && credits.front() <= t;
        if (top->credit) credits.pop_front();
        if (top->arrive_valid || top->credit) top->eval();  // a clock gate opens on them before the clock rises
    }
    // Before the edge that ends cycle `t`: ports that the tile drives are stable, ports that we drive are set.
    void drive(uint64_t t) {
        bool ready = model.ready(t), write = ready;
        if (model.banks) {
            // No output depends on an input within a cycle: the last evaluation left what the tile offers in this one.
            ready = true;
            if (top->write_valid && !waiting) {
                waiting = true, taken = writes.usable(model, t, top->write_address);
                while (!model.ready(taken)) taken++;
            }
            write = waiting && taken == t;
            if (write) waiting = false;
        }
        top->read_ready = ready;
        top->write_ready = write;
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
        if (top->write_valid && write) {
            const uint64_t a = top->write_address;
            const uint8_t *data = bytes(top->write_data), *strobe = bytes(top->write_strobe);
            for (uint64_t i = 0; i < WIDTH; i++)
                if (strobe[i / 8] >> i % 8 & 1 && a + i < size) memory[a + i] = data[i];
        }
        if (top->read_valid && ready) {
            address[tail % due.size()] = top->read_address;
            due[tail % due.size()] = model.banks ? reads.answer(model, t, top->read_address) : t + model.latency;
            tail++;
        }
        if (trace && top->popped) {
            const uint64_t row[2] = {t, top->popped};
            fwrite(row, sizeof row, 1, trace);
        }
        drive_links(t);
    }
    void counters() {
        printf("counters");
        for (int i = 0; i < N_COUNTERS; i++) {
            top->counter_address = i;
            tick();
            printf(" %llu", (unsigned long long)top->counter_data);
        }
        puts("");
        fflush(stdout);
    }
    void start() {
        due.assign(4096, 0);
        address.assign(4096, 0);
        head = tail = 0;
        reads.reset(model), writes.reset(model), waiting = false;
        top->start = 1;
        tick();
        top->start = 0;
        top->eval();
    }
    void open(const char* name) {
        const int file = ::open(name, O_RDWR);
        struct stat info;
        if (file < 0 || fstat(file, &info)) { perror(name); exit(1); }
        size = info.st_size;
        memory = static_cast<uint8_t*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
        if (memory == MAP_FAILED) { perror("mmap"); exit(1); }
        top->rst = 1;
        for (int i = 0; i < 4; i++) tick();
        top->rst = 0;
        tick();
    }
};

static bool run(std::vector<Bench*>& ring, uint64_t limit) {
    for (Bench* b : ring) b->start();
    // Once all are done, what is still on the links comes home.
    uint64_t left = ring[0]->link_latency + 2;
    for (uint64_t t = 0;; t++) {
        bool done = true;
        for (Bench* b : ring) done &= b->top->done;
        if (done && !left--) break;
        if (!done && t >= limit) return false;
        for (Bench* b : ring) b->drive(t);
        for (Bench* b : ring) b->tick();
        if (!(~t & 0xfffff)) {
            printf("at %llu\n", (unsigned long long)t);
            fflush(stdout);
        }
    }
    for (Bench* b : ring)
        if (b->trace) fflush(b->trace);
    return true;
}

int main(int argc, char** argv) {
    if (argc < 2) { fprintf(stderr, "usage: %s MEMORY... [+dump=DIRECTORY]\n", argv[0]); return 1; }
    std::vector<Bench*> ring;
    for (int i = 1; i < argc; i++)
        if (*argv[i] != '+') {
            Bench* b = new Bench;
            b->context.commandArgs(argc, argv);
            b->top = new Vfl_tile(&b->context, ("tile" + std::to_string(ring.size())).c_str());
            b->open(argv[i]);
            ring.push_back(b);
        }
    for (size_t i = 0; i < ring.size(); i++) {
        ring[i]->behind = ring[(i + 1) % ring.size()];
        ring[i]->behind->before = ring[i];
    }
    size_t chosen = 0;
    char line[4096], name[4096];
    while (fgets(line, sizeof line, stdin)) {
        unsigned long long v[10];
        Bench& b = *ring[chosen];
        if (sscanf(line, "tile %llu", v) == 1 && *v < ring.size()) chosen = *v;
        else if (sscanf(line, "link %llu", v) == 1) {
            for (Bench* one : ring) one->link_latency = *v;
        } else if (sscanf(line, "program %4095s", name) == 1) b.load(true, name);
        else if (sscanf(line, "parameters %4095s", name) == 1) b.load(false, name);
        else if (!strncmp(line, "counters", 8)) b.counters();
        else if (!strncmp(line, "sync", 4)) {
            puts("ready");
            fflush(stdout);
        } else if (sscanf(line, "memory %llu %llu %llu %llu %llu %llu %llu %llu %llu %llu", v, v + 1, v + 2, v + 3, v + 4, v + 5, v + 6, v + 7, v + 8,
                          v + 9) == 10) {
            b.model.latency = v[0], b.model.beats = v[1], b.model.cycles = v[2], b.model.period = v[3], b.model.busy = v[4];
            b.model.banks = v[5], b.model.row_bytes = v[6], b.model.activate = v[7], b.model.precharge = v[8], b.model.row_cycles = v[9];
        } else if (sscanf(line, "trace %4095s", name) == 1) {
            if (b.trace) fclose(b.trace);
            b.trace = strcmp(name, "-") ? fopen(name, "wb") : nullptr;
        } else if (sscanf(line, "run %llu", v) == 1) {
            const clock_t begin = clock();
            const bool done = run(ring, v[0]);
            const double seconds = double(clock() - begin) / CLOCKS_PER_SEC;
            printf("%s %.6f", done ? "done" : "limit", seconds);
            for (Bench* one : ring) printf(" %llu", (unsigned long long)one->top->cycles);
            puts("");
            fflush(stdout);
        } else if (!strncmp(line, "quit", 4)) break;
        else { fprintf(stderr, "unknown command: %s", line); return 1; }
    }
    for (Bench* b : ring) {
        if (b->trace) fclose(b->trace);
        b->top->final();
    }
    return 0;
}
