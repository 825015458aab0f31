package conf

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func FuzzPortSentry(f *testing.F) {
	fuzzDialect(f, "portsentry.conf")
}

func FuzzNative(f *testing.F) {
	f.Add([]byte(DefaultNative()))
	fuzzDialect(f, "portsnare.toml")
}

// fuzzDialect checks that what parses under the given file name is written
// natively as something that parses to the same Config.
func fuzzDialect(f *testing.F, name string) {
	for _, dir := range []string{"testdata/convert", "testdata/faults"} {
		for _, path := range inputs(f, dir) {
			if isNative(path) == isNative(name) {
				f.Add(read(f, path))
			}
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, _, err := parse(name, text)
		if err != nil {
			if err.Error() == "" {
				t.Fatalf("%q: a fault without words", text)
			}
			return
		}
		native := c.AppendNative(nil)
		again, _, err := parse("native.toml", native)
		if err != nil {
			t.Fatalf("%q is written natively as\n%s\nwhich is faulty: %v", text, native, err)
		}
		if diff := cmp.Diff(c, again, comparePorts); diff != "" {
			t.Fatalf("%q is written natively as\n%s\nwhich means something else (-file +native):\n%s", text, native, diff)
		}
	})
}
