#include "json.h"

#include <charconv>

#include "../error.h"

namespace zq2onnx::cuda {

// Recursive descent.
class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  Json whole() {
    Json value = read(0);
    skip_blanks();
    if (at_ != text_.size()) fail("more after its end");
    return value;
  }

 private:
  static constexpr int kDeepest = 16;  // a manifest has 6

  [[noreturn]] void fail(const char* what) const {
    throw Error(std::string("no JSON: ") + what + " at byte " + std::to_string(at_), "");
  }

  void skip_blanks() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r')) {
      ++at_;
    }
  }

  char peek() const {
    if (at_ >= text_.size()) fail("it ends too soon");
    return text_[at_];
  }

  bool take(char wanted) {
    skip_blanks();
    if (peek() != wanted) return false;
    ++at_;
    return true;
  }

  void expect(char wanted) {
    if (!take(wanted)) fail("another character than expected");
  }

  bool take_word(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json read(int depth) {
    if (depth > kDeepest) fail("it is nested too deep");
    skip_blanks();
    Json value;
    switch (peek()) {
      case '{': read_object(value, depth); break;
      case '[': read_array(value, depth); break;
      case '"':
        value.kind_ = Json::Kind::kText;
        value.text_ = read_text();
        break;
      default: read_plain(value);
    }
    return value;
  }

  void read_plain(Json& value) {
    if (take_word("null")) return;
    if (take_word("true") || take_word("false")) {
      value.kind_ = Json::Kind::kTruth;
      value.integer_ = text_[at_ - 2] == 'u';
      return;
    }
    const char* begin = text_.data() + at_;
    const auto [end, error] = std::from_chars(begin, text_.data() + text_.size(), value.integer_);
    if (error != std::errc{}) fail("no value");
    at_ += static_cast<size_t>(end - begin);
    if (at_ < text_.size() && (text_[at_] == '.' || text_[at_] == 'e' || text_[at_] == 'E')) fail("no integer");
    value.kind_ = Json::Kind::kInteger;
  }

  // Nothing in a manifest needs more than the plain escapes.
  std::string read_text() {
    std::string read;
    for (++at_; peek() != '"'; ++at_) {
      if (text_[at_] < ' ' || text_[at_] > '~') fail("a character that is not plain ASCII");  // nor is it in errors
      if (text_[at_] != '\\') {
        read += text_[at_];
        continue;
      }
      ++at_;
      const char escaped = peek();
      if (escaped != '"' && escaped != '\\' && escaped != '/') fail("an escape that no manifest has");
      read += escaped;
    }
    ++at_;
    return read;
  }

  void read_array(Json& value, int depth) {
    value.kind_ = Json::Kind::kArray;
    ++at_;
    if (take(']')) return;
    do value.items_.push_back(read(depth + 1));
    while (take(','));
    expect(']');
  }

  void read_object(Json& value, int depth) {
    value.kind_ = Json::Kind::kObject;
    ++at_;
    if (take('}')) return;
    do {
      skip_blanks();
      if (peek() != '"') fail("a key that is no text");
      value.keys_.push_back(read_text());
      expect(':');
      value.items_.push_back(read(depth + 1));
    } while (take(','));
    expect('}');
  }

  std::string_view text_;
  size_t at_ = 0;
};

Json Json::parse(std::string_view text) { return JsonReader(text).whole(); }

void Json::fail(const std::string& what, const char* required) { throw Error(what, required); }

const std::string& Json::text(const char* what) const {
  if (kind_ != Kind::kText) fail(std::string(what) + " is no text", "text");
  return text_;
}

bool Json::truth(const char* what) const {
  if (kind_ != Kind::kTruth) fail(std::string(what) + " is no truth value", "true or false");
  return integer_ != 0;
}

int64_t Json::integer(const char* what, int64_t least, int64_t most) const {
  if (kind_ == Kind::kInteger && integer_ >= least && integer_ <= most) return integer_;
  const std::string found = kind_ == Kind::kInteger ? std::to_string(integer_) : "no integer";
  throw Error(std::string(what) + " is " + found, std::to_string(least) + " to " + std::to_string(most));
}

const std::vector<Json>& Json::items(const char* what) const {
  if (kind_ != Kind::kArray) fail(std::string(what) + " is no list", "a list");
  return items_;
}

const Json& Json::at(const char* key) const {
  for (size_t index = 0; index < keys_.size(); ++index) {
    if (keys_[index] == key) return items_[index];
  }
  fail(std::string("there is no ") + key, "an object that has it");
}

}  // namespace zq2onnx::cuda
