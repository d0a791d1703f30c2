// Files that are read: regular ones only, and none larger than it may be.

#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace demobert {

constexpr std::uint64_t kNoLimit = std::numeric_limits<std::uint64_t>::max();

// The size of the regular file `path`; `what` is what the user is told it is: "engine". Throws Error for all else: a
// folder, a device, or a FIFO, which would block whoever opens it.
std::uint64_t file_size(const std::string& path, const std::string& what);

// Its bytes, if there are at most `limit`. Throws Error.
std::vector<char> read_file(const std::string& path, const std::string& what, std::uint64_t limit = kNoLimit);

}  // namespace demobert
