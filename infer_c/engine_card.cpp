#include "engine_card.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "bert_infer.h"

namespace demobert {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::int64_t kLargest =
    1 << 24;  // of a size, a length or a table: far over any BERT's, and no product overflows

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
    card.vocab_size = whole(config.at("vocab_size"), "vocab_size");
    card.type_vocab_size = whole(config.value("type_vocab_size", Json(2)), "type_vocab_size");
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
    return joined;
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

EngineCard read_card(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw Error("engine card can't be read: " + path);
    }
    try {
        return from_json(Json::parse(file));
    } catch (const Json::parse_error& error) {
        throw Error("the engine card " + path + " can't be used: it is not JSON (byte " + std::to_string(error.byte) +
                    "); build the engine again");
    } catch (const std::exception& error) {
        throw Error("the engine card " + path + " can't be used: " + one_line(error.what()) +
                    "; build the engine again");
    }
}

}  // namespace demobert
