#include "bert_infer.h"

#include <dlfcn.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <new>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "backend.h"
#include "input_file.h"
#include "sha256.h"

namespace demobert {
namespace {

constexpr int kRunsToPrepare = 2;  // the second run of a shape captures its CUDA graph

constexpr auto kLongestRename = std::chrono::seconds(2);  // of three files by who is not dead

std::string text(std::int64_t number) {
    return std::to_string(number);
}

struct Backend {
    const char* name;
    bool (*recognises)(std::string_view first_bytes);  // of an engine without a card
};

bool ends_with_trt(std::string_view magic) {
    return magic.substr(1, 3) == "trt";
}

// The first bytes are those of helpers/backends/: OpenVINO's blobs since 2026; TensorRT's plans, whose first letter
// differs by release, TensorRT-RTX's being v.
constexpr std::array<Backend, 3> kBackends = {{
    {"openvino", [](std::string_view bytes) { return bytes.substr(0, 8) == "RR_UPCVO"; }},
    {"tensorrt", [](std::string_view bytes) { return bytes[0] != 'v' && ends_with_trt(bytes); }},
    {"tensorrt_rtx", [](std::string_view bytes) { return bytes[0] == 'v' && ends_with_trt(bytes); }},
}};

// The load function of a backend's library, which lies beside this one. It stays loaded: CUDA and OpenVINO keep threads
// and registries that do not outlive theirs. Throws Error where it was not built or can't be loaded.
LoadFunction backend_loader(const std::string& name) {
    const std::string library = "libdemobert_" + name + ".so";
    // Local: two releases of TensorRT have the same symbols, and must not see each other's.
    void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        const std::string reason = one_line(dlerror());
        if (tells_of_short_memory(reason)) {
            throw std::bad_alloc();
        }
        throw Error("the " + name + " backend of infer_c is not built or can't be loaded (" + reason +
                    "); see what cmake says of it");
    }
    void* symbol = dlsym(handle, kLoadSymbol);
    if (symbol == nullptr) {
        throw Error(library + " is not a backend of infer_c; build it again");
    }
    return reinterpret_cast<LoadFunction>(symbol);
}

// The engine that the card describes. Its size is looked at first: what a card does not speak of may be of any.
std::vector<char> read_described(const std::string& path, const EngineCard& card) {
    const std::uint64_t size = file_size(path, "engine");
    if (size != static_cast<std::uint64_t>(card.engine_bytes)) {
        throw Error(path + " has " + std::to_string(size) + " bytes, its card says " + text(card.engine_bytes) +
                    ": it is truncated or another engine; build it again");
    }
    std::vector<char> bytes = read_file(path, "engine");
    if (sha256(bytes.data(), bytes.size()) != card.engine_sha256) {
        throw Error(path + " is not the engine that its card describes, or is damaged; build it again");
    }
    return bytes;
}

// The list of the new files of an engine that are being put in their places (helpers/outputs.py).
bool is_pending(const std::string& engine) {
    std::error_code failed;
    const std::filesystem::path path = std::filesystem::weakly_canonical(engine, failed);  // it lies beside no link
    const auto list = path.parent_path() / ("." + path.filename().string() + ".pending");
    return std::filesystem::exists(std::filesystem::symlink_status(list, failed));
}

// Throws Error where engine, card and tokenizer may not belong together, which the scripts can mend.
void check_not_torn(const std::string& engine) {
    const auto end = std::chrono::steady_clock::now() + kLongestRename;
    while (is_pending(engine)) {
        if (std::chrono::steady_clock::now() > end) {
            throw Error(engine +
                        " is torn: whoever wrote it was killed while the new files were put in place; perf.py and "
                        "inference.py finish that, or build it again");
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
}

EngineCard read_card_of(const std::string& path, const LoadOptions& options) {
    if (!options.config.empty()) {
        throw UsageError(kConfigHasNoEffect);
    }
    EngineCard card = read_card(card_path(path));
    const auto known = std::any_of(kBackends.begin(), kBackends.end(),
                                   [&](const Backend& backend) { return card.backend == backend.name; });
    if (!known) {
        throw Error("there is no backend '" + card.backend + "' here (there is: openvino, tensorrt, tensorrt_rtx)");
    }
    return card;
}

std::string backend_of(const std::string& path, const std::vector<char>& bytes) {
    const std::string_view first(bytes.data(), std::min<std::size_t>(bytes.size(), 8));
    for (const Backend& backend : kBackends) {
        if (first.size() >= 4 && backend.recognises(first)) {
            return backend.name;
        }
    }
    throw Error(path +
                " is not an engine of any backend here (openvino, tensorrt, tensorrt_rtx); build one with builder.py");
}

void check_ids(const std::int32_t* ids, std::int64_t count, const char* kind, std::int64_t table_size) {
    const auto [smallest, largest] = std::minmax_element(ids, ids + count);
    if (*smallest < 0 || *largest >= table_size) {
        throw Error(std::string("a ") + kind + " id is outside the model's " + text(table_size) + ": " +
                    text(*smallest) + " to " + text(*largest));
    }
}

void check_mask(const std::int32_t* mask, const Shape& shape) {
    for (std::int64_t row = 0; row < shape.batch_size; ++row) {
        const std::int32_t* begin = mask + row * shape.sequence_length;
        const std::int32_t* end = begin + shape.sequence_length;
        const auto* zeros = std::find_if(begin, end, [](std::int32_t value) { return value != 1; });
        if (zeros == begin || std::any_of(zeros, end, [](std::int32_t value) { return value != 0; })) {
            throw Error("the input mask must be ones on each row's leading tokens, then zeros");
        }
    }
}

void check_cu_seqlens(const std::int32_t* starts, const Shape& shape) {
    if (starts[0] != 0) {
        throw Error("cu_seqlens must start at 0, not at " + text(starts[0]));
    }
    for (std::int64_t i = 0; i < shape.batch_size; ++i) {
        if (starts[i + 1] <= starts[i]) {
            throw Error("cu_seqlens must ascend: " + text(starts[i]) + " is followed by " + text(starts[i + 1]));
        }
        if (starts[i + 1] - starts[i] > shape.sequence_length) {
            throw Error("max_seqlen has the length " + text(shape.sequence_length) + ", a sequence has " +
                        text(starts[i + 1] - starts[i]) + " tokens");
        }
    }
    if (starts[shape.batch_size] != shape.tokens) {
        throw Error("cu_seqlens must end at the number of tokens, " + text(shape.tokens) + ", not at " +
                    text(starts[shape.batch_size]));
    }
}

TableSizes given_tables(const std::string& config) {
    try {
        return table_sizes(config);
    } catch (const Error& error) {
        throw Error("the model's configuration that is given can't be used: " + std::string(error.what()));
    }
}

void check_same(const std::string& path, const char* table, std::int64_t own, std::int64_t given) {
    if (own != given) {
        throw Error(path + " was built with " + table + " " + text(own) + ", the configuration of -c has " +
                    text(given));
    }
}

}  // namespace

void describe_by(EngineCard& card, const EngineFile& file, const std::optional<NetworkFacts>& named) {
    const std::string& config = file.options.config;
    if (!named && config.empty()) {
        throw Error(file.path +
                    " does not tell the sizes of its tables; name the folder of the model's configuration with -c, or "
                    "build it again");
    }
    card.precision = named ? named->precision : std::vector<std::string>();
    card.config = named ? named->config : config;
    card.tables = named ? named->tables : given_tables(config);
    if (named && !config.empty()) {
        const TableSizes own = named->tables, given = given_tables(config);
        check_same(file.path, "vocab_size", own.vocab_size, given.vocab_size);
        check_same(file.path, "type_vocab_size", own.type_vocab_size, given.type_vocab_size);
        check_same(file.path, "max_position_embeddings", own.max_position_embeddings, given.max_position_embeddings);
    }
}

bool tells_of_short_memory(std::string_view text) {
    // new's, the loader's, mmap's by OpenVINO's code generator, and a thread's that has no room for its stack.
    constexpr std::array<std::string_view, 6> kSigns = {
        "bad_alloc",     "annot allocate memory", "failed to map segment",
        "out of memory", "can't alloc",           "Resource temporarily unavailable"};
    return std::any_of(kSigns.begin(), kSigns.end(),
                       [&](std::string_view sign) { return text.find(sign) != std::string_view::npos; });
}

std::string one_line(const std::string& text) {
    std::string line;
    for (const char byte : text) {
        const auto code = static_cast<unsigned char>(byte);
        if (code > 0x20 && code != 0x7f) {
            line += byte;
        } else if (!line.empty() && line.back() != ' ') {
            line += ' ';
        }
    }
    if (!line.empty() && line.back() == ' ') {
        line.pop_back();
    }
    return line;
}

std::vector<std::vector<std::int64_t>> Shape::inputs(Layout layout) const {
    if (layout == Layout::padded) {
        return std::vector(3, std::vector{batch_size, sequence_length});
    }
    return {{tokens}, {tokens}, {batch_size + 1}, {sequence_length}};
}

OwnBatch::OwnBatch(Layout layout, std::int64_t batch_size, std::int64_t length,
                   const std::function<std::int32_t()>& ids, std::int32_t segment) {
    batch.shape = {batch_size, length, batch_size * length};
    const auto tokens = static_cast<std::size_t>(batch.shape.tokens);
    arrays.assign(2, std::vector<std::int32_t>(tokens));
    std::generate(arrays[0].begin(), arrays[0].end(), ids);
    for (std::size_t token = 0; token < tokens; ++token) {
        const std::int64_t position = static_cast<std::int64_t>(token) % length;
        arrays[1][token] = position >= length / 2 ? segment : 0;
    }
    if (layout == Layout::padded) {
        arrays.emplace_back(tokens, 1);
    } else {
        arrays.emplace_back();
        for (std::int64_t row = 0; row <= batch_size; ++row) {
            arrays[2].push_back(static_cast<std::int32_t>(row * length));
        }
        arrays.emplace_back(static_cast<std::size_t>(length), 0);
    }
    for (const auto& array : arrays) {
        batch.inputs.push_back(array.data());
    }
}

void check_sizes(const EngineCard& card, std::int64_t batch_size, std::int64_t sequence_length) {
    if (sequence_length < 1 || batch_size < 1) {
        throw Error("batch size and sequence length must be at least 1");
    }
    if (sequence_length > card.max_sequence_length()) {
        throw Error("sequence length " + text(sequence_length) + " is over this engine's longest, " +
                    text(card.max_sequence_length()) + "; rebuild it with -s " + text(sequence_length));
    }
    if (batch_size > card.max_batch_size()) {
        throw Error("batch size " + text(batch_size) + " is over this engine's largest, " +
                    text(card.max_batch_size()) + "; rebuild it with -b " + text(batch_size));
    }
}

void check_batch(const EngineCard& card, const Batch& batch) {
    const Shape& shape = batch.shape;
    check_sizes(card, shape.batch_size, shape.sequence_length);
    if (shape.tokens < 1) {
        throw Error("there are no tokens");
    }
    if (shape.tokens > card.max_tokens()) {
        throw Error(text(shape.tokens) + " tokens are over this engine's most, " + text(card.max_tokens()));
    }
    if (card.layout == Layout::padded) {
        check_mask(batch.inputs[2], shape);
    } else {
        check_cu_seqlens(batch.inputs[2], shape);
    }
    check_ids(batch.inputs[0], shape.tokens, "token", card.tables.vocab_size);
    check_ids(batch.inputs[1], shape.tokens, "segment", card.tables.type_vocab_size);
}

void Engine::prepare(std::int64_t batch_size, std::int64_t sequence_length) {
    check_sizes(card_, batch_size, sequence_length);
    const OwnBatch zeros(
        card_.layout, batch_size, sequence_length, [] { return 0; }, 0);
    std::vector<float> logits(static_cast<std::size_t>(zeros.batch.shape.tokens * kLogits));
    for (int run = 0; run < kRunsToPrepare; ++run) {
        infer(zeros.batch, logits.data());
    }
}

void Engine::run(const Batch& batch, float* logits) {
    check_batch(card_, batch);
    infer(batch, logits);
}

std::vector<double> Engine::time(const Batch& batch, std::int64_t iterations, std::int64_t warm_up_runs,
                                 double duration, const std::function<void()>& on_run) {
    using Clock = std::chrono::steady_clock;
    check_batch(card_, batch);
    const auto run_once = timed_run(batch);
    for (std::int64_t i = 0; i < warm_up_runs; ++i) {
        run_once();
        on_run();
    }
    std::vector<double> latencies;
    const auto end = Clock::now() + std::chrono::duration<double>(duration);
    while (static_cast<std::int64_t>(latencies.size()) < iterations || Clock::now() < end) {
        latencies.push_back(run_once());
        on_run();
    }
    return latencies;
}

std::string card_path(const std::string& engine) {
    return engine + ".json";
}

bool has_card(const std::string& engine) {
    struct stat found {};
    return lstat(card_path(engine).c_str(), &found) == 0 || errno != ENOENT;
}

std::unique_ptr<Engine> load_engine(const std::string& path, const LoadOptions& options) {
    check_not_torn(path);
    if (file_size(path, "engine") == 0) {
        throw Error("engine is empty: " + path);
    }
    std::optional<EngineCard> card;
    std::vector<char> bytes;
    if (has_card(path)) {
        card = read_card_of(path, options);
        bytes = read_described(path, *card);
    } else if (options.trust_engine) {
        bytes = read_file(path, "engine");
    } else {
        throw Error(path + " has no engine card (" + card_path(path) +
                    "): loading an engine runs what is in it; copy its card beside it, or, if you built it yourself, "
                    "pass --trust-engine");
    }
    const LoadFunction load = backend_loader(card ? card->backend : backend_of(path, bytes));
    const auto shared = std::make_shared<const std::vector<char>>(std::move(bytes));
    return std::unique_ptr<Engine>(load({path, shared, card ? &*card : nullptr, options}));
}

}  // namespace demobert
