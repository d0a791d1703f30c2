// What the library of a backend (libdemobert_<name>.so) exports, and what it is given.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bert_infer.h"

namespace demobert {

// An engine file in memory, verified against its card where it has one.
struct EngineFile {
    std::string path;
    std::shared_ptr<const std::vector<char>> bytes;
    const EngineCard* card;  // null: guess one
    LoadOptions options;
};

// The one symbol of a backend's library. Throws Error.
extern "C" DEMOBERT_SHARED Engine* demobert_load(const EngineFile& file);

using LoadFunction = Engine* (*)(const EngineFile&);
constexpr const char* kLoadSymbol = "demobert_load";

}  // namespace demobert
