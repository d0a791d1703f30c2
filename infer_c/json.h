// JSON of files that nobody vouches for.

#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

namespace demobert {

using Json = nlohmann::ordered_json;

// The value of `text`. Throws Error where it is no JSON, or is nested so deeply that copying it would take all of the
// stack.
Json parse_json(std::string_view text);

// A whole number from 1 to `most` under the key `name`. Throws Error.
std::int64_t whole_number(const Json& values, const char* name, std::int64_t most);

}  // namespace demobert
