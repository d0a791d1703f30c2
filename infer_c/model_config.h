// The configuration of a model, as its checkpoint's folder has it (see helpers/bert_config.py and helpers/families.py).

#pragma once

#include <string>
#include <vector>

namespace demobert {

// The sizes of the tables by `folder`/bert_config.json or `folder`/config.json, or by such a file itself: JSON as of a
// card's configuration, but for what has nothing to do with tables. Throws Error.
std::string read_model_config(const std::string& folder);

// The files that belong to the model: those in its folder, and where its configuration would be; or the file itself.
std::vector<std::string> model_files(const std::string& folder);

}  // namespace demobert
