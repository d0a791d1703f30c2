#include "input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "bert_infer.h"

namespace demobert {
namespace {

// At once: Linux reads no more than 2 GiB.
constexpr std::uint64_t kBlock = 1 << 30;

struct Handle {
    explicit Handle(int opened) : number(opened) {}
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;
    ~Handle() {
        if (number >= 0) {
            close(number);
        }
    }
    int number;
};

Error unreadable(const std::string& path, const std::string& what, int reason) {
    return Error(what + " can't be read: " + path + ": " + std::strerror(reason));
}

std::uint64_t size_of(const struct stat& found, const std::string& path, const std::string& what) {
    if (!S_ISREG(found.st_mode)) {
        throw Error(what + " is not a file: " + path);
    }
    return static_cast<std::uint64_t>(found.st_size);
}

// All of a file, or what is left of one that shrinks meanwhile.
std::vector<char> read_all(int handle, std::uint64_t size, const std::string& path, const std::string& what) {
    std::vector<char> bytes(size);
    std::uint64_t done = 0;
    while (done < size) {
        const ssize_t count = read(handle, bytes.data() + done, std::min(size - done, kBlock));
        if (count < 0 && errno != EINTR) {
            throw unreadable(path, what, errno);
        }
        if (count == 0) {
            break;
        }
        done += static_cast<std::uint64_t>(std::max<ssize_t>(count, 0));
    }
    bytes.resize(done);
    return bytes;
}

}  // namespace

std::uint64_t file_size(const std::string& path, const std::string& what) {
    struct stat found {};
    if (stat(path.c_str(), &found) != 0) {
        throw errno == ENOENT ? Error(what + " not found: " + path) : unreadable(path, what, errno);
    }
    return size_of(found, path, what);
}

std::vector<char> read_file(const std::string& path, const std::string& what, std::uint64_t limit) {
    file_size(path, what);  // before it is opened: opening a device can be enough to do something
    const Handle file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
    struct stat found {};
    if (file.number < 0 || fstat(file.number, &found) != 0) {
        throw unreadable(path, what, errno);
    }
    const std::uint64_t size = size_of(found, path, what);
    if (size > limit) {
        throw Error(what + " is larger than " + std::to_string(limit >> 20) + " MiB: " + path);
    }
    return read_all(file.number, size, path, what);
}

}  // namespace demobert
