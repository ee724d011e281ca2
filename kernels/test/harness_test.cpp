// The harness's own arithmetic: a test in parts leaves no case out and runs none twice.
#include "harness.h"

using namespace nexus::test;

TEST("harness: the parts of a test are all of its cases, each in one part") {
  for (const int of : {1, 2, 7})
    for (const int cases : {0, 1, 6, 30}) {
      std::vector<int> runs(static_cast<size_t>(cases));
      for (int i = 1; i <= of; ++i) {
        Part part = Part::parse(show(i) + "/" + show(of));
        CHECK_EQ(part.first(), i == 1);
        for (int& n : runs) n += part.mine();
      }
      for (const int n : runs) CHECK_EQ(n, 1);
    }
  Part all = Part::parse("");
  for (int i = 0; i < 5; ++i) CHECK(all.first() && all.mine());
}

TEST("harness: what is no part is refused") {
  for (const char* text : {"1", "0/3", "4/3", "-1/2", "1/2x", "1/", "a/b", "1/0"}) {
    bool refused = false;
    try {
      Part::parse(text);
    } catch (const std::invalid_argument& e) {
      refused = std::string(e.what()).find(text) != std::string::npos;
    }
    if (!refused) throw Failure(std::string(text) + " was taken");
  }
}
