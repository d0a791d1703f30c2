// The engine card: what an engine file can't say of itself, as JSON beside it (see helpers/engine_card.py).

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace demobert {

enum class Layout { padded, packed };

// The network's inputs, in their order.
const std::vector<std::string>& input_names(Layout layout);

const char* name_of(Layout layout);

// How many rows a model's tables have: what can be asked of them, whatever the file says that claims it.
struct TableSizes {
    std::int64_t vocab_size = 0;
    std::int64_t type_vocab_size = 0;
    std::int64_t max_position_embeddings = 0;
};

// Those of a configuration, JSON as in a card. Throws Error where they make no sense.
TableSizes table_sizes(const std::string& config);

// The fields are helpers/engine_card.py's. Sizes are ascending; the last is the largest that the engine serves.
struct EngineCard {
    std::string backend;
    std::string backend_version;
    std::string device;
    Layout layout = Layout::padded;
    std::string network;
    std::vector<std::string> precision;
    std::vector<std::int64_t> batch_sizes;
    std::vector<std::int64_t> sequence_lengths;
    std::optional<std::string> tokenizer_sha256;  // of the file beside the engine, which Python reads
    std::string engine_sha256;
    std::int64_t engine_bytes = 0;
    std::map<std::string, std::string> settings;
    std::string config;  // the model's configuration, as JSON
    TableSizes tables;   // of the configuration

    std::int64_t max_batch_size() const { return batch_sizes.back(); }
    std::int64_t max_sequence_length() const { return sequence_lengths.back(); }
    std::int64_t max_tokens() const { return max_batch_size() * max_sequence_length(); }

    // "int8+bf16". A plan without its card may not tell: then there is none in `precision`.
    std::string precisions() const;

    // ", batch size up to 8, sequence length up to 384": how every engine's description ends.
    std::string sizes() const;

    // The card as JSON, its fields in the order of a card file.
    std::string json() const;
};

// Read and check a card. Throws Error where a field is missing or makes no sense.
EngineCard read_card(const std::string& path);

// What the builder writes into the name of a network, for an engine that has lost its card: EngineFacts of
// helpers/engine_card.py.
struct NetworkFacts {
    std::vector<std::string> precision;
    std::string config;
    TableSizes tables;
};

// Nothing where the name is another: that of an older engine, or of somebody else's.
std::optional<NetworkFacts> read_network_name(const std::string& name);

}  // namespace demobert
