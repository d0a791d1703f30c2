#include "output_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <random>
#include <set>
#include <string_view>
#include <thread>
#include <utility>

#include "bert_infer.h"

namespace demobert {
namespace {

namespace fs = std::filesystem;

constexpr int kMostLinks = 40;                                 // that Linux follows, too
constexpr auto kLongestWait = std::chrono::seconds(10);        // for another process that writes the same file
constexpr auto kBetweenTries = std::chrono::milliseconds(50);  // to get its lock

constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyz0123456789_";  // of Python's temporary names
constexpr std::size_t kRandomLetters = 8;
constexpr const char* kTemporarySuffix = ".tmp";

// What has to go when a signal ends the process. The mutex is held from before a file is made until it is named here:
// so whoever holds it sees all files that there are.
struct Unfinished {
    std::mutex mutex;
    std::set<std::string> files;
};

// Never destroyed: a signal can come while static objects are.
Unfinished& unfinished() {
    static auto* const only = new Unfinished();
    return *only;
}

bool is_same_file(const struct stat& one, const struct stat& other) {
    return one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

// What is neither a file nor a link, for people.
const char* kind_of(mode_t mode) {
    switch (mode & S_IFMT) {
        case S_IFDIR:
            return "a folder";
        case S_IFIFO:
            return "a named pipe";
        case S_IFSOCK:
            return "a socket";
        default:
            return "a device";
    }
}

fs::path folder_of(const fs::path& path) {
    return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

// Where writing to `path` leads: links are followed, also those to what is not there yet. The folder is left as it is
// named. `failed` becomes the reason why nothing can be there.
fs::path followed(fs::path path, std::error_code& failed) {
    for (int links = 0; links <= kMostLinks; ++links) {
        struct stat found {};
        if (lstat(path.c_str(), &found) != 0) {
            failed = errno == ENOENT ? std::error_code() : std::error_code(errno, std::generic_category());
            return path;
        }
        if (!S_ISLNK(found.st_mode)) {
            return path;
        }
        const fs::path link = fs::read_symlink(path, failed);
        if (failed) {
            return path;
        }
        path = path.parent_path() / link;  // which is the link alone where it begins at the root
    }
    failed = std::make_error_code(std::errc::too_many_symbolic_link_levels);
    return path;
}

std::string temporary_name(const std::string& name) {
    std::random_device random;
    std::uniform_int_distribution<std::size_t> letter(0, kLetters.size() - 1);
    std::string letters(kRandomLetters, ' ');
    std::generate(letters.begin(), letters.end(), [&] { return kLetters[letter(random)]; });
    return "." + name + "." + letters + kTemporarySuffix;
}

// Whether `found` is a name that temporary_name gives for `name`, or mkstemp to Python.
bool is_temporary_of(const std::string& name, const std::string& found) {
    const std::string begin = "." + name + ".";
    if (found.size() != begin.size() + kRandomLetters + std::strlen(kTemporarySuffix) || found.rfind(begin, 0) != 0) {
        return false;
    }
    const std::string letters = found.substr(begin.size(), kRandomLetters);
    return found.substr(begin.size() + kRandomLetters) == kTemporarySuffix &&
           std::all_of(letters.begin(), letters.end(),
                       [](char byte) { return std::isalnum(static_cast<unsigned char>(byte)) || byte == '_'; });
}

// A new file beside `name`, which goes with this object unless it has taken that place. Throws std::system_error.
class Temporary {
public:
    Temporary(const fs::path& folder, const std::string& name) {
        const std::lock_guard<std::mutex> lock(unfinished().mutex);
        do {
            path_ = (folder / temporary_name(name)).string();
            // Not by mkstemp: its mode of 0600 would hide the file from others, and the umask is best asked by the
            // kernel.
            handle_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        } while (handle_ < 0 && errno == EEXIST);
        if (handle_ < 0) {
            throw std::system_error(errno, std::generic_category());
        }
        unfinished().files.insert(path_);
    }
    Temporary(const Temporary&) = delete;
    Temporary& operator=(const Temporary&) = delete;
    ~Temporary() {
        const std::lock_guard<std::mutex> lock(unfinished().mutex);
        if (handle_ >= 0) {
            close(handle_);
        }
        if (unfinished().files.erase(path_) != 0) {
            unlink(path_.c_str());
        }
    }

    // On the disk, not only in its cache.
    void fill(const std::string& content) {
        for (std::size_t done = 0; done < content.size();) {
            const ssize_t count = ::write(handle_, content.data() + done, content.size() - done);
            if (count < 0 && errno != EINTR) {
                throw std::system_error(errno, std::generic_category());
            }
            done += static_cast<std::size_t>(std::max<ssize_t>(count, 0));
        }
        if (fsync(handle_) != 0 || close(std::exchange(handle_, -1)) != 0) {
            throw std::system_error(errno, std::generic_category());
        }
    }

    void take_the_place_of(const fs::path& target) {
        const std::lock_guard<std::mutex> lock(unfinished().mutex);
        if (std::rename(path_.c_str(), target.c_str()) != 0) {
            throw std::system_error(errno, std::generic_category());
        }
        unfinished().files.erase(path_);
    }

private:
    std::string path_;
    int handle_ = -1;
};

// The right to write a file, among all processes that ask for it. Throws Error where another keeps it for too long,
// std::system_error where the folder can't be written.
class Lock {
public:
    Lock(const fs::path& folder, const std::string& name, const std::string& shown)
        : path_((folder / ("." + name + ".lock")).string()) {
        const auto end = std::chrono::steady_clock::now() + kLongestWait;
        while (!try_to_get()) {
            if (std::chrono::steady_clock::now() > end) {
                throw Error("another process is writing " + shown + ": wait for it, or name another file");
            }
            std::this_thread::sleep_for(kBetweenTries);
        }
    }
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;
    ~Lock() {
        const std::lock_guard<std::mutex> lock(unfinished().mutex);
        unlink(path_.c_str());  // before it is free: whoever waits for it sees that it is gone, and makes a new one
        unfinished().files.erase(path_);
        close(handle_);
    }

    // Whether other processes are kept out: some file systems have no locks.
    bool keeps_others_out() const { return keeps_others_out_; }

private:
    bool try_to_get() {
        const std::lock_guard<std::mutex> lock(unfinished().mutex);
        handle_ = opened();
        int failed = 0;
        do {
            failed = flock(handle_, LOCK_EX | LOCK_NB) == 0 ? 0 : errno;
        } while (failed == EINTR);
        keeps_others_out_ = failed == 0;
        if (failed == EWOULDBLOCK || (failed == 0 && !is_still_there())) {
            close(handle_);
            return false;
        }
        unfinished().files.insert(path_);
        return true;
    }

    int opened() const {
        constexpr int kFlags = O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK;
        int handle = open(path_.c_str(), O_RDWR | O_CREAT | kFlags, 0666);
        if (handle < 0 && errno == EACCES) {  // another user's: enough to wait for it
            handle = open(path_.c_str(), O_RDONLY | kFlags);
        }
        if (handle < 0) {
            throw std::system_error(errno, std::generic_category());
        }
        return handle;
    }

    // Whether the file that is locked still has its name: the one who had the lock before has taken it away.
    bool is_still_there() const {
        struct stat locked {};
        struct stat named {};
        return fstat(handle_, &locked) == 0 && lstat(path_.c_str(), &named) == 0 && is_same_file(locked, named);
    }

    std::string path_;
    int handle_ = -1;
    bool keeps_others_out_ = false;
};

// Remove what writers of `name` that were killed have left, unless a list says that it is still to be put in its place
// (helpers/outputs.py). Only who keeps all others out may do it.
void remove_stale(const fs::path& folder, const std::string& name) {
    std::error_code failed;
    if (fs::exists(fs::symlink_status(folder / ("." + name + ".pending"), failed))) {
        return;
    }
    for (fs::directory_iterator entry(folder, failed), end; !failed && entry != end; entry.increment(failed)) {
        if (is_temporary_of(name, entry->path().filename().string())) {
            unlink(entry->path().c_str());
        }
    }
}

}  // namespace

// What is to be written, without links: a name in a folder.
struct OutputFile::Target {
    fs::path folder;
    std::string name;

    fs::path path() const { return folder / name; }
};

OutputFile::OutputFile(std::string flag, std::string path, std::vector<std::string> inputs)
    : flag_(std::move(flag)), path_(std::move(path)), inputs_(std::move(inputs)) {
    const Target found = target();
    refuse_input(found);
    try {
        const Temporary made(found.folder, found.name);  // a name of this length can be there, too
    } catch (const std::system_error& error) {
        throw Error(flag_ + ": can't write " + path_ + ": " + error.code().message());
    }
}

OutputFile::Target OutputFile::target() const {
    std::error_code failed;
    const fs::path path = followed(path_, failed);
    const fs::path folder = failed ? fs::path() : fs::canonical(folder_of(path), failed);
    if (failed == std::errc::no_such_file_or_directory) {
        throw Error(flag_ + ": the folder " + folder_of(path).string() + " does not exist; create it first");
    }
    if (failed) {
        throw Error(flag_ + ": can't write " + path_ + ": " + failed.message());
    }
    struct stat found {};
    if (lstat(path.c_str(), &found) == 0 && !S_ISREG(found.st_mode)) {
        throw Error(flag_ + " is " + kind_of(found.st_mode) + ", not a file: " + path_);
    }
    return {folder, path.filename().string()};
}

void OutputFile::refuse_input(const Target& target) const {
    struct stat output {};
    const bool exists = stat(target.path().c_str(), &output) == 0;
    for (const std::string& input : inputs_) {
        struct stat found {};
        bool same = exists && stat(input.c_str(), &found) == 0 && is_same_file(output, found);
        if (!exists) {
            std::error_code failed;
            const fs::path path = followed(input, failed);
            same = !failed && path.filename() == target.name && fs::equivalent(folder_of(path), target.folder, failed);
        }
        if (same) {
            throw Error(flag_ + " " + path_ + " would replace an input; name another file");
        }
    }
}

void OutputFile::write(const std::string& content) const {
    const Target to = target();
    try {
        const Lock lock(to.folder, to.name, path_);
        if (lock.keeps_others_out()) {
            remove_stale(to.folder, to.name);
        }
        Temporary file(to.folder, to.name);
        file.fill(content);
        file.take_the_place_of(to.path());
    } catch (const std::system_error& error) {
        throw Error("can't write " + path_ + ": " + error.code().message());
    }
}

void abandon_outputs() {
    unfinished().mutex.lock();  // and never unlocked
    for (const std::string& path : unfinished().files) {
        unlink(path.c_str());
    }
}

}  // namespace demobert
