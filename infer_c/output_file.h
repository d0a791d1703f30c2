// Files that are written: refused before the work where they can't be, whole or not at all after it.

#pragma once

#include <string>
#include <vector>

namespace demobert {

// A file that a flag names. While it is written, a lock `.NAME.lock` and a temporary file `.NAME.XXXXXXXX.tmp` lie
// beside it, as they do for helpers/outputs.py: of two processes that write one file, in C++ or in Python, the second
// waits.
class OutputFile {
public:
    // Throws Error where `path` can't be written, is something else than a regular file, or is one of the `inputs`, by
    // whatever name: a link to one, or a name that one would have if it were there.
    OutputFile(std::string flag, std::string path, std::vector<std::string> inputs);

    // Put `content` in the place of what is there; a link stays, and its target is replaced. Throws Error, and then the
    // file is what it was.
    void write(const std::string& content) const;

private:
    struct Target;

    Target target() const;
    void refuse_input(const Target& target) const;

    std::string flag_;
    std::string path_;
    std::vector<std::string> inputs_;
};

// Remove the temporary files and locks of this process, which is about to end: no other can be made afterwards.
void abandon_outputs();

}  // namespace demobert
