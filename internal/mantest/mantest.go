// Package mantest checks the manual pages against what they describe.
package mantest

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// Lint fails the test if mandoc finds a mistake in the page at path.
func Lint(t *testing.T, path string) {
	t.Helper()
	if out, err := exec.Command("mandoc", "-T", "lint", "-W", "warning", path).CombinedOutput(); err != nil {
		t.Errorf("mandoc: %v\n%s", err, out)
	}
}

// Flags returns the flags of a program as [Explains] takes them: "-json" for
// --json, "c" for -c.
func Flags(set *pflag.FlagSet) []string {
	var flags []string
	set.VisitAll(func(f *pflag.Flag) {
		flags = append(flags, "-"+f.Name)
		if f.Shorthand != "" {
			flags = append(flags, f.Shorthand)
		}
	})
	return flags
}

// Explains fails the test unless the lists of the page at path have an item
// for each of the words and for no other. The words are those that macro marks
// in the source: Fl for flags, Cm for commands and configuration keys.
func Explains(t *testing.T, path, macro string, words []string) {
	t.Helper()
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	marked := regexp.MustCompile(`\b` + macro + ` (\S+)`)
	var explained []string
	for _, item := range regexp.MustCompile(`(?m)^\.It .*`).FindAllString(string(page), -1) {
		for _, match := range marked.FindAllStringSubmatch(item, -1) {
			explained = append(explained, match[1])
		}
	}
	if diff := cmp.Diff(set(words), set(explained)); diff != "" {
		t.Errorf("%s: items (-program +page)\n%s", path, diff)
	}
}

// set returns the words sorted, each once.
func set(words []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(words)))
}
