// build/perf: time an engine as perf.py and perf_varseqlen.py do, without Python. Same flags, report and JSON.

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "bert_infer.h"
#include "json.h"
#include "model_config.h"
#include "output_file.h"
#include "process.h"

namespace demobert {
namespace {

constexpr std::int64_t kDefaultLength = 128;

struct Arguments {
    std::string engine;
    std::vector<std::int64_t> batch_sizes;
    std::int64_t sequence_length = 0;  // 0: kDefaultLength, or the engine's longest if that is shorter
    std::int64_t iterations = 200;
    std::int64_t warm_up_runs = 10;
    double duration = 0;
    std::uint64_t seed = 12345;
    std::string json;
    std::string config_dir;
    bool trust_engine = false;
    bool enable_graph = false;
    bool help = false;
};

std::int64_t number(const std::string& text, std::int64_t smallest) {
    std::size_t end = 0;
    std::int64_t value = -1;
    try {
        value = std::stoll(text, &end);
    } catch (const std::exception&) {  // not a number, or too large for one: said below
    }
    if (end != text.size() || value < smallest) {
        throw UsageError("'" + text + "' is not a whole number of at least " + std::to_string(smallest));
    }
    return value;
}

double seconds(const std::string& text) {
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if (text.empty() || *end != '\0' || !(value >= 0 && value <= 86400)) {
        throw UsageError("'" + text + "' is not a number of seconds from 0 to 86400");
    }
    return value;
}

std::string file_name(const std::string& text) {
    if (text.empty()) {
        throw UsageError("'' is not the name of a file");
    }
    return text;
}

struct Flag {
    std::vector<std::string> names;
    const char* metavar;  // null: a switch
    const char* help;
    std::function<void(Arguments&, const std::string&)> apply;
};

const std::vector<Flag>& flags() {
    static const std::vector<Flag> all = {
        {{"-h", "--help"}, nullptr, "show this and end", [](Arguments& a, const std::string&) { a.help = true; }},
        {{"-e", "--engine"},
         "FILE",
         "engine file, written by builder.py or builder_varseqlen.py (required)",
         [](Arguments& a, const std::string& value) { a.engine = file_name(value); }},
        {{"-b", "--batch-size"},
         "N",
         "batch size; repeat for more (default: 1)",
         [](Arguments& a, const std::string& value) { a.batch_sizes.push_back(number(value, 1)); }},
        {{"-s", "--sequence-length"},
         "N",
         "sequence length in tokens (default: 128, or the engine's longest if that is shorter)",
         [](Arguments& a, const std::string& value) { a.sequence_length = number(value, 1); }},
        {{"-i", "--iterations"},
         "N",
         "runs to time (default: 200)",
         [](Arguments& a, const std::string& value) { a.iterations = number(value, 1); }},
        {{"-w", "--warm-up-runs"},
         "N",
         "runs before that (default: 10)",
         [](Arguments& a, const std::string& value) { a.warm_up_runs = number(value, 0); }},
        {{"-d", "--duration"},
         "S",
         "go on for at least so many seconds (default: 0)",
         [](Arguments& a, const std::string& value) { a.duration = seconds(value); }},
        {{"-r", "--random-seed"},
         "N",
         "seed of the random inputs (default: 12345)",
         [](Arguments& a, const std::string& value) { a.seed = static_cast<std::uint64_t>(number(value, 0)); }},
        {{"-c", "--config-dir"},
         "DIR",
         "folder of the model's configuration, or that file: for an engine that has no card and does not tell its "
         "sizes",
         [](Arguments& a, const std::string& value) { a.config_dir = file_name(value); }},
        {{"--trust-engine"},
         nullptr,
         "load an engine without its card, which runs what is in it: only one that you built yourself",
         [](Arguments& a, const std::string&) { a.trust_engine = true; }},
        {{"--enable_graph", "--enable-graph"},
         nullptr,
         "replay a CUDA graph (TensorRT engines)",
         [](Arguments& a, const std::string&) { a.enable_graph = true; }},
        {{"--json"},
         "FILE",
         "write the figures as JSON",
         [](Arguments& a, const std::string& value) { a.json = file_name(value); }},
    };
    return all;
}

std::string help() {
    std::string text = "usage: perf -e FILE [flags]\n\nTime a BERT engine, padded or packed, on random input.\n\n";
    for (const Flag& flag : flags()) {
        std::string names = "  " + flag.names[0];
        for (std::size_t i = 1; i < flag.names.size(); ++i) {
            names += ", " + flag.names[i];
        }
        names += flag.metavar ? std::string(" ") + flag.metavar : "";
        names.resize(std::max<std::size_t>(names.size() + 2, 34), ' ');
        text += names + flag.help + "\n";
    }
    return text;
}

// The flag of `argument`, and the value attached to it: "--json=FILE" and "-b8" as well as "-b". Null: no such flag.
std::pair<const Flag*, std::optional<std::string>> find_flag(const std::string& argument) {
    for (const Flag& flag : flags()) {
        for (const std::string& name : flag.names) {
            const bool is_long = name[1] == '-';
            if (argument == name) {
                return {&flag, std::nullopt};
            }
            const std::string begin = is_long ? name + "=" : name;
            if (flag.metavar != nullptr && argument.rfind(begin, 0) == 0) {
                return {&flag, argument.substr(begin.size())};
            }
        }
    }
    return {nullptr, std::nullopt};
}

Arguments parse(const std::vector<std::string>& given) {
    Arguments arguments;
    for (std::size_t i = 0; i < given.size(); ++i) {
        auto [flag, value] = find_flag(given[i]);
        if (flag == nullptr) {
            throw UsageError("unrecognized argument: " + given[i]);
        }
        if (flag->metavar != nullptr && !value) {
            if (++i == given.size()) {
                throw UsageError("argument " + given[i - 1] + ": expected one argument");
            }
            value = given[i];
        }
        try {
            flag->apply(arguments, value.value_or(""));
        } catch (const UsageError& error) {
            throw UsageError("argument " + flag->names.back() + ": " + error.what());
        }
    }
    if (arguments.engine.empty() && !arguments.help) {
        throw UsageError("the following arguments are required: -e/--engine");
    }
    if (arguments.batch_sizes.empty()) {
        arguments.batch_sizes = {1};
    }
    return arguments;
}

// helpers/benchmark.py's Timing; latencies in ms.
struct Timing {
    std::int64_t batch_size, sequence_length, iterations;
    double total_ms, average_ms, median_ms, percentile_95_ms, percentile_99_ms, sentences_per_second;
    std::int64_t tokens;
    double tokens_per_second, padding_saved;

    Json json() const {
        return {{"batch_size", batch_size},
                {"sequence_length", sequence_length},
                {"iterations", iterations},
                {"total_ms", total_ms},
                {"average_ms", average_ms},
                {"median_ms", median_ms},
                {"percentile_95_ms", percentile_95_ms},
                {"percentile_99_ms", percentile_99_ms},
                {"sentences_per_second", sentences_per_second},
                {"tokens", tokens},
                {"tokens_per_second", tokens_per_second},
                {"padding_saved", padding_saved}};
    }
};

// Linear interpolation between the two nearest ranks, numpy's default. `sorted` ascends.
double percentile(const std::vector<double>& sorted, double percent) {
    const double rank = percent / 100 * static_cast<double>(sorted.size() - 1);
    const auto below = static_cast<std::size_t>(rank);
    const std::size_t above = std::min(below + 1, sorted.size() - 1);
    return sorted[below] + (rank - std::floor(rank)) * (sorted[above] - sorted[below]);
}

Timing timing_of(std::vector<double> latencies, const Shape& shape) {
    std::sort(latencies.begin(), latencies.end());
    const double total = std::accumulate(latencies.begin(), latencies.end(), 0.0);
    const auto count = static_cast<double>(latencies.size());
    const std::int64_t filled = shape.batch_size * shape.sequence_length;
    return {shape.batch_size,
            shape.sequence_length,
            static_cast<std::int64_t>(latencies.size()),
            total,
            total / count,
            percentile(latencies, 50),
            percentile(latencies, 95),
            percentile(latencies, 99),
            static_cast<double>(shape.batch_size) * count / total * 1e3,
            shape.tokens,
            static_cast<double>(shape.tokens) * count / total * 1e3,
            1.0 - static_cast<double>(shape.tokens) / static_cast<double>(filled)};
}

void report(const Timing& timing, Layout layout) {
    print("    Total Time: %.3f ms for %lld iterations\n", timing.total_ms, static_cast<long long>(timing.iterations));
    print("    Average Time: %.3f ms    Median Time: %.3f ms\n", timing.average_ms, timing.median_ms);
    print("    95th Percentile Time: %.3f ms    99th Percentile Time: %.3f ms\n", timing.percentile_95_ms,
          timing.percentile_99_ms);
    print("    Throughput: %.3f Sentences/Sec\n", timing.sentences_per_second);
    if (layout == Layout::packed) {
        print("    Tokens: %lld, %.0f Tokens/Sec    Padding saved: %.1f %% of %lld × %lld = %lld\n",
              static_cast<long long>(timing.tokens), timing.tokens_per_second, 100 * timing.padding_saved,
              static_cast<long long>(timing.batch_size), static_cast<long long>(timing.sequence_length),
              static_cast<long long>(timing.batch_size * timing.sequence_length));
    }
}

// How many runs are done, on one line of a terminal; nothing elsewhere.
class Progress {
public:
    explicit Progress(std::int64_t total) : total_(total), shown_(isatty(STDERR_FILENO) != 0) {}
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;
    ~Progress() {
        if (shown_) {
            std::fprintf(stderr, "\r\033[K");
        }
    }

    void update() {
        ++done_;
        const auto now = std::chrono::steady_clock::now();
        if (shown_ && now - last_ > std::chrono::milliseconds(100)) {
            last_ = now;
            const std::string of = total_ ? "/" + std::to_string(total_) : "";
            std::fprintf(stderr, "\r%lld%s runs", static_cast<long long>(done_), of.c_str());
        }
    }

private:
    std::int64_t total_;
    std::int64_t done_ = 0;
    bool shown_;
    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// Full rows of random word pieces; the second half of each is the passage's segment.
OwnBatch random_batch(const EngineCard& card, std::int64_t batch_size, std::int64_t length, std::uint64_t seed) {
    std::mt19937_64 generator(seed);
    std::uniform_int_distribution<std::int32_t> ids(0, static_cast<std::int32_t>(card.tables.vocab_size - 1));
    const std::int32_t segment = card.tables.type_vocab_size > 1 ? 1 : 0;
    return {card.layout, batch_size, length, [&] { return ids(generator); }, segment};
}

// What --json must not replace.
std::vector<std::string> inputs_of(const Arguments& arguments) {
    const std::string& engine = arguments.engine;
    std::vector<std::string> inputs = {engine, card_path(engine), engine + ".tokenizer.json"};
    if (!arguments.config_dir.empty()) {
        const std::vector<std::string> files = model_files(arguments.config_dir);
        inputs.insert(inputs.end(), files.begin(), files.end());
    }
    return inputs;
}

// A line for people; stdout holds results only.
void note(const std::string& text) {
    std::fprintf(stderr, "%s\n", one_line(text).c_str());
}

// What an engine without a card is taken for.
std::string without_card(const EngineCard& card, const std::string& engine) {
    return "no engine card " + card_path(engine) + "; the engine itself tells: " + card.backend + ", " +
           name_of(card.layout) + ", " + card.precisions() + card.sizes() + ", vocabulary of " +
           std::to_string(card.tables.vocab_size) + "; nothing vouches for its bytes or its tokenizer";
}

std::unique_ptr<Engine> load(const Arguments& arguments) {
    LoadOptions options;
    options.enable_graph = arguments.enable_graph;
    options.trust_engine = arguments.trust_engine;
    const bool described = has_card(arguments.engine);
    if (!arguments.config_dir.empty()) {
        if (described) {
            throw UsageError(kConfigHasNoEffect);
        }
        options.config = read_model_config(arguments.config_dir);
    }
    if (arguments.trust_engine && described) {
        note("Note: --trust-engine has no effect: the engine has its card");
    }
    auto engine = load_engine(arguments.engine, options);
    if (!described) {
        note(without_card(engine->card(), arguments.engine));
    }
    note(engine->describe());
    return engine;
}

Timing time_batch(Engine& engine, const Arguments& arguments, std::int64_t batch_size, std::int64_t length) {
    const OwnBatch own = random_batch(engine.card(), batch_size, length, arguments.seed);
    Progress progress(arguments.duration > 0 ? 0 : arguments.iterations + arguments.warm_up_runs);
    std::vector<double> latencies = engine.time(own.batch, arguments.iterations, arguments.warm_up_runs,
                                                arguments.duration, [&] { progress.update(); });
    return timing_of(std::move(latencies), own.batch.shape);
}

void run(const Arguments& arguments) {
    std::optional<OutputFile> output;
    if (!arguments.json.empty()) {
        output.emplace("--json", arguments.json, inputs_of(arguments));
    }
    const auto engine = load(arguments);
    const EngineCard& card = engine->card();
    const std::int64_t length =
        arguments.sequence_length ? arguments.sequence_length : std::min(kDefaultLength, card.max_sequence_length());
    for (const std::int64_t size : arguments.batch_sizes) {  // one that does not fit ends the run before the first
        check_sizes(card, size, length);
    }
    Json timings = Json::array();
    for (const std::int64_t size : arguments.batch_sizes) {
        print("Running %lld iterations with Batch Size: %lld\n", static_cast<long long>(arguments.iterations),
              static_cast<long long>(size));
        if (!output && !all_was_printed()) {  // nobody would see the figures
            return;
        }
        const Timing timing = time_batch(*engine, arguments, size, length);
        report(timing, card.layout);
        timings.push_back(timing.json());
    }
    if (output) {
        const Json all = {{"engine", engine->describe()}, {"card", Json::parse(card.json())}, {"timings", timings}};
        output->write(all.dump(2) + "\n");
    }
}

void perf(const std::vector<std::string>& given) {
    const Arguments arguments = parse(given);
    if (arguments.help) {
        print("%s", help().c_str());
    } else {
        run(arguments);
    }
}

}  // namespace
}  // namespace demobert

int main(int count, char** given) {
    return demobert::run_program("perf", [&] { demobert::perf({given + std::min(count, 1), given + count}); });
}
