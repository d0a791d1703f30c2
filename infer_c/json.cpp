#include "json.h"

#include <string>

#include "bert_infer.h"

namespace demobert {
namespace {

constexpr int kDeepest = 100;  // a card has three levels, a model's configuration a few more

}  // namespace

Json parse_json(std::string_view text) {
    const auto allowed = [](int depth, Json::parse_event_t, Json&) {
        if (depth > kDeepest) {
            throw Error("it is nested more than " + std::to_string(kDeepest) + " levels deep");
        }
        return true;
    };
    try {
        return Json::parse(text.begin(), text.end(), allowed);
    } catch (const Json::parse_error& error) {
        throw Error("it is not JSON (byte " + std::to_string(error.byte) + ")");
    }
}

std::int64_t whole_number(const Json& values, const char* name, std::int64_t most) {
    const auto found = values.find(name);
    if (found == values.end()) {
        throw Error(std::string("it lacks ") + name);
    }
    if (!found->is_number_integer() || *found < 1 || *found > most) {
        throw Error(std::string(name) + " is not a whole number from 1 to " + std::to_string(most));
    }
    return found->get<std::int64_t>();
}

}  // namespace demobert
