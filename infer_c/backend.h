// What the library of a backend (libdemobert_<name>.so) exports, and what it is given.

#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bert_infer.h"

namespace demobert {

// An engine file in memory, verified against its card where it has one.
struct EngineFile {
    std::string path;
    std::shared_ptr<const std::vector<char>> bytes;
    const EngineCard* card;  // null: what the file itself tells, and options.config
    LoadOptions options;
};

// Gives the card of an engine that has lost its own what its network's name tells: precision and configuration; or else
// the configuration of options.config. Throws Error where neither tells the tables' sizes, or where they differ.
void describe_by(EngineCard& card, const EngineFile& file, const std::optional<NetworkFacts>& named);

// The one symbol of a backend's library. Throws Error.
extern "C" DEMOBERT_SHARED Engine* demobert_load(const EngineFile& file);

using LoadFunction = Engine* (*)(const EngineFile&);
constexpr const char* kLoadSymbol = "demobert_load";

}  // namespace demobert
