// A BERT engine that answers questions: load, select a profile, run, time. One class per backend implements it.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "engine_card.h"

// The backends are libraries of their own, loaded when an engine needs one: what they share must be visible.
#define DEMOBERT_SHARED __attribute__((visibility("default")))

namespace demobert {

// A file, engine or array that can't be used: one line that says what is wrong and what to do.
class DEMOBERT_SHARED Error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// Arguments that contradict each other: exit code 2.
class DEMOBERT_SHARED UsageError : public Error {
public:
    using Error::Error;
};

// The numbers that give all inputs of an engine their shapes.
struct Shape {
    std::int64_t batch_size = 0;       // B: sequences
    std::int64_t sequence_length = 0;  // S: the longest sequence's tokens
    std::int64_t tokens = 0;           // those computed: B·S of a padded batch, the sum of the lengths of a packed one

    // The dimensions of each input, in the order of input_names().
    std::vector<std::vector<std::int64_t>> inputs(Layout layout) const;

    bool operator==(const Shape& other) const {
        return batch_size == other.batch_size && sequence_length == other.sequence_length && tokens == other.tokens;
    }
};

// Inputs of one run, int32, contiguous, in the order of input_names(); the arrays are the caller's.
// Padded: three [B, S]. Packed: [T], [T], [B + 1] and [Smax], of which only the length matters.
struct Batch {
    Shape shape;
    std::vector<const std::int32_t*> inputs;
};

// A batch of full sequences with its memory: word pieces from `ids`, the second half of each in segment `segment`.
struct OwnBatch {
    OwnBatch(Layout layout, std::int64_t batch_size, std::int64_t length, const std::function<std::int32_t()>& ids,
             std::int32_t segment);

    std::vector<std::vector<std::int32_t>> arrays;
    Batch batch;
};

// What load_engine is asked for.
struct LoadOptions {
    bool throughput = false;    // rather the rate of many runs at once than the latency of one
    bool enable_graph = false;  // replay a captured CUDA graph instead of launching the network's kernels one by one
    bool trust_engine = false;  // load an engine without its card: loading one runs what is in it
    std::string config;  // the model's configuration, JSON as in a card, for an engine without one; empty: not given
};

constexpr std::int64_t kLogits = 2;  // start and end

class DEMOBERT_SHARED Engine {
public:
    Engine(EngineCard card, std::string path) : card_(std::move(card)), path_(std::move(path)) {}
    virtual ~Engine() = default;
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    const EngineCard& card() const { return card_; }
    const std::string& path() const { return path_; }

    // Do now what the first run of this shape would have to: select the profile, compile or load kernels, capture the
    // CUDA graph. Throws Error where the engine does not serve the shape.
    void prepare(std::int64_t batch_size, std::int64_t sequence_length);

    // Start and end logits of one batch: `logits` has room for [B, S, 2] floats, or [T, 2] of a packed engine. May be
    // called from several threads at once. Throws Error where the batch is not well formed or does not fit.
    void run(const Batch& batch, float* logits);

    // Latencies in ms of at least `iterations` runs that go on for at least `duration` seconds. On a GPU, CUDA events
    // around the network, without copies. `on_run` is called after each run, outside the time taken.
    std::vector<double> time(const Batch& batch, std::int64_t iterations, std::int64_t warm_up_runs, double duration,
                             const std::function<void()>& on_run);

    // One line for people: backend, device, precision, sizes.
    virtual std::string describe() const = 0;

    // The length to pad a batch to whose longest sequence has `length` tokens.
    virtual std::int64_t padded_length(std::int64_t length) const = 0;

    // How many calls of run() at once use the device best.
    virtual std::int64_t parallel_runs() const { return 1; }

protected:
    // Both get a checked batch. Throw Error.
    virtual void infer(const Batch& batch, float* logits) = 0;
    virtual std::function<double()> timed_run(const Batch& batch) = 0;

private:
    EngineCard card_;
    std::string path_;
};

// Throws Error unless the engine of `card` takes so many sequences of so many tokens.
void check_sizes(const EngineCard& card, std::int64_t batch_size, std::int64_t sequence_length);

// Throws Error unless `batch` is well formed and fits the engine's sizes and embedding tables.
void check_batch(const EngineCard& card, const Batch& batch);

// The card's path, beside the engine's.
std::string card_path(const std::string& engine);

// Why a model's configuration is refused for an engine that has its card.
constexpr const char* kConfigHasNoEffect = "-c has no effect: the engine has its card";

// Whether the engine has a card, if only one that can't be read.
bool has_card(const std::string& engine);

// Load the engine file `path` and hold it against its card. Without one it has to be trusted, and its card is read from
// the engine. Throws Error where anything does not fit, UsageError for options that do not.
std::unique_ptr<Engine> load_engine(const std::string& path, const LoadOptions& options);

// Whether what a library says of a failure, in its own kind of error, comes of short memory.
bool tells_of_short_memory(std::string_view text);

// `text` with everything that would break a line or drive a terminal made a space, and runs of spaces made one.
std::string one_line(const std::string& text);

}  // namespace demobert
