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

// fuzzDialect checks what parses under the given file name.
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
		checkParsed(t, text, c, err)
	})
}

func FuzzPortSentry1(f *testing.F) {
	for _, dir := range []string{"testdata/convert", "testdata/faults"} {
		for _, path := range inputs(f, dir) {
			if !isNative(path) {
				f.Add("tcp,sudp", read(f, path))
				f.Add("atcp,udp", read(f, path))
			}
		}
	}
	f.Fuzz(func(t *testing.T, list string, text []byte) {
		words, err := ParseModeWords(list)
		if err != nil {
			return
		}
		var p PortSentry1
		c, _, err := p.dialect(words).parse("portsentry.conf", text)
		if len(p.Idle) > 0 {
			return // the native form is refused
		}
		checkParsed(t, text, c, err)
	})
}

// checkParsed checks that what was parsed from text is written natively as
// something that parses to the same Config, or that the faults have words.
func checkParsed(t *testing.T, text []byte, c Config, err error) {
	t.Helper()
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
	if diff := cmp.Diff(c, again, opaque); diff != "" {
		t.Fatalf("%q is written natively as\n%s\nwhich means something else (-file +native):\n%s", text, native, diff)
	}
}
