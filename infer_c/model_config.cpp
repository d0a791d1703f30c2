#include "model_config.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>

#include "bert_infer.h"
#include "engine_card.h"
#include "input_file.h"
#include "json.h"

namespace demobert {
namespace {

namespace fs = std::filesystem;

constexpr std::array<const char*, 2> kNames = {"bert_config.json", "config.json"};

constexpr std::uint64_t kLargestConfig = 64 << 20;  // bytes

// Families whose tables are not counted as BERT's: RoBERTa's position table begins with rows up to the padding's id,
// which no token has; DistilBERT has no segments.
struct Family {
    const char* model_type;
    const char* class_prefix;
    bool skips_padding_id;
    bool has_segments;
};

constexpr std::array<Family, 7> kFamilies = {{
    {"bert", "Bert", false, true},
    {"roberta", "Roberta", true, true},
    {"camembert", "Camembert", true, true},
    {"xlm-roberta", "XLMRoberta", true, true},
    {"distilbert", "DistilBert", false, false},
    {"electra", "Electra", false, true},
    {"albert", "Albert", false, true},
}};

// What RoBERTa's configuration means where it does not say, and more than any of its numbers.
constexpr std::int64_t kUsualPaddingId = 1, kUsualPositions = 512, kMost = 1 << 21;

// Whether one of the classes that the configuration is for is the family's.
bool is_for_class(const Json& values, const Family& family) {
    const Json classes = values.value("architectures", Json());
    const std::string prefix = family.class_prefix;
    return classes.is_array() && std::any_of(classes.begin(), classes.end(), [&](const Json& name) {
               const std::string text = name.is_string() ? name.get<std::string>() : "";
               return text.rfind(prefix + "For", 0) == 0 || text.rfind(prefix + "Model", 0) == 0;
           });
}

const Family& family_of(const Json& values) {
    const Json model_type = values.value("model_type", Json());
    const auto is_named = [&](const Family& family) {
        return model_type.is_null() ? is_for_class(values, family) : model_type == family.model_type;
    };
    const auto found = std::find_if(kFamilies.begin(), kFamilies.end(), is_named);
    if (found != kFamilies.end()) {
        return *found;
    }
    if (!model_type.is_null()) {
        throw Error("model_type " + model_type.dump() + " is not supported");
    }
    return kFamilies.front();
}

// The rows of RoBERTa's position table that tokens can have.
std::int64_t positions_after_padding(const Json& values) {
    const Json rows = values.value("max_position_embeddings", Json(kUsualPositions));
    const Json padding = values.value("pad_token_id", Json(kUsualPaddingId));
    for (const Json& value : {rows, padding}) {
        if (!value.is_number_integer() || value < 0 || value > kMost) {
            throw Error("max_position_embeddings or pad_token_id is not a whole number of a sensible size");
        }
    }
    return rows.get<std::int64_t>() - padding.get<std::int64_t>() - 1;
}

std::string config_from(Json values) {
    if (!values.is_object()) {
        throw Error("the configuration is not a JSON object");
    }
    const Family& family = family_of(values);
    if (family.skips_padding_id) {
        values["max_position_embeddings"] = positions_after_padding(values);
    }
    if (!family.has_segments) {
        values["type_vocab_size"] = 1;
    }
    const TableSizes sizes = table_sizes(values.dump());
    return Json{{"vocab_size", sizes.vocab_size},
                {"max_position_embeddings", sizes.max_position_embeddings},
                {"type_vocab_size", sizes.type_vocab_size},
                {"model_type", family.model_type}}
        .dump();
}

std::string find_config(const std::string& folder) {
    std::error_code failed;
    if (!fs::is_directory(folder, failed)) {
        return folder;
    }
    for (const char* name : kNames) {
        const fs::path path = fs::path(folder) / name;
        if (fs::is_regular_file(path, failed)) {
            return path.string();
        }
    }
    throw Error("no bert_config.json or config.json in " + folder + "; name its folder with --config-dir");
}

}  // namespace

std::string read_model_config(const std::string& folder) {
    const std::string path = find_config(folder);
    const std::vector<char> text = read_file(path, "model configuration", kLargestConfig);
    try {
        return config_from(parse_json({text.data(), text.size()}));
    } catch (const std::bad_alloc&) {
        throw;
    } catch (const std::exception& error) {
        throw Error(path + ": " + error.what());
    }
}

std::vector<std::string> model_files(const std::string& folder) {
    std::error_code failed;
    if (!fs::is_directory(folder, failed)) {
        return {folder};
    }
    std::vector<std::string> files;
    for (const char* name : kNames) {
        files.push_back((fs::path(folder) / name).string());
    }
    for (fs::directory_iterator entry(folder, failed), end; !failed && entry != end; entry.increment(failed)) {
        files.push_back(entry->path().string());
    }
    return files;
}

}  // namespace demobert
