#include "engine_card.h"

#include <algorithm>

#include "bert_infer.h"
#include "input_file.h"
#include "json.h"

namespace demobert {
namespace {

constexpr std::uint64_t kLargestCard = 1 << 20;  // bytes; a card has two thousand

constexpr std::int64_t kLargest = 1 << 24;  // of a size or a length: far over any BERT's, and no product overflows

// The limits of helpers/bert_config.py, and what it takes where a configuration does not say.
constexpr std::int64_t kMostWords = 1 << 21, kMostSegments = 1 << 10, kMostPositions = 1 << 16;
constexpr std::int64_t kUsualSegments = 2, kUsualPositions = 512;

std::int64_t whole(const Json& value, const std::string& name) {
    if (!value.is_number_integer() || value < 1 || value > kLargest) {
        throw Error(name + " is not a whole number of a sensible size");
    }
    return value.get<std::int64_t>();
}

std::vector<std::int64_t> sizes_of(const Json& card, const std::string& name) {
    const Json& values = card.at(name);
    std::vector<std::int64_t> sizes;
    if (values.is_array()) {
        for (const Json& value : values) {
            sizes.push_back(whole(value, name));
        }
    }
    if (sizes.empty() || !std::is_sorted(sizes.begin(), sizes.end())) {
        throw Error(name + " is not an ascending list of whole numbers");
    }
    return sizes;
}

std::string text_of(const Json& card, const std::string& name) {
    if (!card.at(name).is_string()) {
        throw Error(name + " is not text");
    }
    return card.at(name).get<std::string>();
}

std::optional<std::string> text_or_null(const Json& card, const std::string& name) {
    return card.at(name).is_null() ? std::nullopt : std::optional(text_of(card, name));
}

Layout layout_of(const Json& card) {
    const std::string name = text_of(card, "layout");
    for (const Layout layout : {Layout::padded, Layout::packed}) {
        if (name == name_of(layout)) {
            return layout;
        }
    }
    throw Error("layout is '" + name + "'");
}

TableSizes tables_of(const Json& config) {
    if (!config.is_object()) {
        throw Error("the configuration is not a JSON object");
    }
    const auto size_of = [&](const char* name, std::int64_t most, std::int64_t usual) {
        return config.contains(name) ? whole_number(config, name, most) : usual;
    };
    return {whole_number(config, "vocab_size", kMostWords), size_of("type_vocab_size", kMostSegments, kUsualSegments),
            size_of("max_position_embeddings", kMostPositions, kUsualPositions)};
}

std::vector<std::string> precision_of(const Json& card) {
    static const std::vector<std::string> known = {"fp32", "fp16", "bf16", "int8", "fp8"};
    const auto precision = card.at("precision").get<std::vector<std::string>>();
    const bool all_known = std::all_of(precision.begin(), precision.end(), [](const std::string& item) {
        return std::find(known.begin(), known.end(), item) != known.end();
    });
    if (precision.empty() || !all_known) {
        throw Error("precision is " + card.at("precision").dump());
    }
    return precision;
}

EngineCard from_json(const Json& values) {
    if (!values.is_object()) {
        throw Error("not a JSON object");
    }
    EngineCard card;
    card.backend = text_of(values, "backend");
    card.backend_version = text_of(values, "backend_version");
    card.device = text_of(values, "device");
    card.layout = layout_of(values);
    card.network = text_of(values, "network");
    card.precision = precision_of(values);
    card.batch_sizes = sizes_of(values, "batch_sizes");
    card.sequence_lengths = sizes_of(values, "sequence_lengths");
    card.tokenizer_sha256 = text_or_null(values, "tokenizer_sha256");
    card.engine_sha256 = text_of(values, "engine_sha256");
    if (!values.at("engine_bytes").is_number_integer()) {
        throw Error("engine_bytes is not a whole number");
    }
    card.engine_bytes = values.at("engine_bytes").get<std::int64_t>();
    card.settings = values.at("settings").get<std::map<std::string, std::string>>();
    const Json& config = values.at("config");
    card.config = config.dump();
    card.tables = tables_of(config);
    return card;
}

}  // namespace

const std::vector<std::string>& input_names(Layout layout) {
    static const std::vector<std::string> padded = {"input_ids", "segment_ids", "input_mask"};
    static const std::vector<std::string> packed = {"input_ids", "segment_ids", "cu_seqlens", "max_seqlen"};
    return layout == Layout::padded ? padded : packed;
}

const char* name_of(Layout layout) {
    return layout == Layout::padded ? "padded" : "packed";
}

std::string EngineCard::precisions() const {
    std::string joined;
    for (const std::string& item : precision) {
        joined += (joined.empty() ? "" : "+") + item;
    }
    return joined.empty() ? "a precision that it does not tell" : joined;
}

std::string EngineCard::sizes() const {
    return ", batch size up to " + std::to_string(max_batch_size()) + ", sequence length up to " +
           std::to_string(max_sequence_length());
}

std::string EngineCard::json() const {
    const auto or_null = [](const std::optional<std::string>& text) { return text ? Json(*text) : Json(nullptr); };
    const Json card = {{"backend", backend},
                       {"backend_version", backend_version},
                       {"device", device},
                       {"layout", name_of(layout)},
                       {"network", network},
                       {"precision", precision},
                       {"batch_sizes", batch_sizes},
                       {"sequence_lengths", sequence_lengths},
                       {"config", Json::parse(config)},
                       {"tokenizer_sha256", or_null(tokenizer_sha256)},
                       {"engine_sha256", engine_sha256},
                       {"engine_bytes", engine_bytes},
                       {"settings", settings}};
    return card.dump();
}

TableSizes table_sizes(const std::string& config) {
    return tables_of(parse_json(config));
}

EngineCard read_card(const std::string& path) {
    const std::vector<char> text = read_file(path, "engine card", kLargestCard);
    try {
        return from_json(parse_json({text.data(), text.size()}));
    } catch (const std::bad_alloc&) {
        throw;
    } catch (const std::exception& error) {
        throw Error("the engine card " + path + " can't be used: " + one_line(error.what()) +
                    "; build the engine again");
    }
}

std::optional<NetworkFacts> read_network_name(const std::string& name) {
    try {
        const Json facts = parse_json(name);
        const Json& config = facts.at("config");
        return NetworkFacts{precision_of(facts), config.dump(), tables_of(config)};
    } catch (const std::bad_alloc&) {
        throw;
    } catch (const std::exception&) {  // no JSON, or other JSON: the caller says what is missing
        return std::nullopt;
    }
}

}  // namespace demobert
