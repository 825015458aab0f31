package hostsdeny

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/portsnare/portsnare/outputs/runcmd"
)

func TestLine(t *testing.T) {
	tests := map[string]struct {
		template, source string
		want             string
	}{
		"IPv4":                  {"ALL: $TARGET$ : DENY", "192.0.2.7", "ALL: 192.0.2.7 : DENY"},
		"IPv6":                  {"ALL: $TARGET$ : DENY", "2001:db8::1", "ALL: [2001:db8::1] : DENY"},
		"short style":           {"ALL: $TARGET$", "2001:db8::1", "ALL: [2001:db8::1]"},
		"brackets already":      {"ALL: [$TARGET$]", "2001:db8::1", "ALL: [2001:db8::1]"},
		"brackets and IPv4":     {"ALL: [$TARGET$]", "192.0.2.7", "ALL: 192.0.2.7"},
		"IPv6 prefix":           {"ALL: $TARGET$", "2001:db8:0:1:ffff::/64", "ALL: [2001:db8:0:1::]/64"},
		"IPv6 prefix, brackets": {"ALL: [$TARGET$] : DENY", "2001:db8::/48", "ALL: [2001:db8::]/48 : DENY"},
		"IPv4 prefix":           {"ALL: $TARGET$", "192.0.2.7/29", "ALL: 192.0.2.0/255.255.255.248"},
		"IPv4-mapped prefix":    {"ALL: $TARGET$", "::ffff:192.0.2.7/120", "ALL: 192.0.2.0/255.255.255.0"},
		"twice":                 {"sshd: $TARGET$ [$TARGET$]", "2001:db8::1", "sshd: [2001:db8::1] [2001:db8::1]"},
		"link-local":            {"ALL: $TARGET$", "fe80::1", "ALL: [fe80::1]"},
		"IPv4-mapped":           {"ALL: $TARGET$", "::ffff:192.0.2.7", "ALL: 192.0.2.7"},
		"port and mode as well": {"ALL: $TARGET$ : spawn logger $PORT$ $MODE$", "192.0.2.7", "ALL: 192.0.2.7 : spawn logger 11 stealth"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Line(tt.template, tokens(tt.source))
			if got != tt.want || err != nil {
				t.Errorf("Line(%q, %s) = %q, %v, want %q", tt.template, tt.source, got, err, tt.want)
			}
		})
	}
	for _, template := range []string{"ALL: ALL", "", "ALL: $TARGET", "$PORT$"} {
		if got, err := Line(template, tokens("192.0.2.7")); !errors.Is(err, runcmd.ErrNoTarget) {
			t.Errorf("Line(%q) = %q, %v, want %v", template, got, err, runcmd.ErrNoTarget)
		}
	}
	if got, err := Line("ALL: $TARGET$", runcmd.Tokens{}); err == nil {
		t.Errorf("Line without a source = %q, want an error", got)
	}
}

// tokens are those of a source, an address or a prefix.
func tokens(source string) runcmd.Tokens {
	return runcmd.Tokens{Source: prefix(source), Port: 11, Mode: runcmd.ModeStealth}
}

func prefix(source string) netip.Prefix {
	if addr, err := netip.ParseAddr(source); err == nil {
		return netip.PrefixFrom(addr, addr.BitLen())
	}
	return netip.MustParsePrefix(source)
}

func TestCheckLine(t *testing.T) {
	tests := map[string]struct {
		line string
		ok   bool
	}{
		"usual":               {"ALL: 192.0.2.7 : DENY", true},
		"longest":             {strings.Repeat("A", maxLine), true},
		"too long":            {strings.Repeat("A", maxLine+1), false},
		"empty":               {"", false},
		"blank":               {" \t", false},
		"newline":             {"ALL: 192.0.2.7\nALL: ALL", false},
		"NUL":                 {"ALL: 192.0.2.7\x00", false},
		"backslash at end":    {`ALL: 192.0.2.7 \`, false},
		"backslash elsewhere": {`ALL: 192.0.2.7 : spawn echo \$ : DENY`, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := checkLine(tt.line); (err == nil) != tt.ok {
				t.Errorf("checkLine(%q) = %v", tt.line, err)
			}
		})
	}
}

const rule = "ALL: 192.0.2.7"

// edits holds texts without the rule, and what they are with it.
var edits = map[string]struct{ text, added string }{
	"empty file":              {"", rule + "\n"},
	"other rules":             {"# ours\nsshd: 192.0.2.8\n", "# ours\nsshd: 192.0.2.8\n" + rule + "\n"},
	"no newline at the end":   {"sshd: 192.0.2.8", "sshd: 192.0.2.8\n" + rule + "\n"},
	"blank lines stay":        {"\n\n", "\n\n" + rule + "\n"},
	"CR LF":                   {"sshd: 192.0.2.8\r\n", "sshd: 192.0.2.8\r\n" + rule + "\n"},
	"longer line":             {rule + "1\n", rule + "1\n" + rule + "\n"},
	"line that holds it":      {"#" + rule + "\n", "#" + rule + "\n" + rule + "\n"},
	"other case":              {"all: 192.0.2.7\n", "all: 192.0.2.7\n" + rule + "\n"},
	"goes on at the end":      {"# over \\\n", "# over \\\n\n" + rule + "\n"},
	"goes on and no newline":  {"# over \\", "# over \\\n\n" + rule + "\n"},
	"goes on, then it ends":   {"a \\\nb\n", "a \\\nb\n" + rule + "\n"},
	"two backslashes":         {`a \\` + "\n", `a \\` + "\n\n" + rule + "\n"},
	"part of a longer rule":   {"# over \\\n" + rule + "\n", "# over \\\n" + rule + "\n" + rule + "\n"},
	"backslash and CR":        {"a \\\r\n", "a \\\r\n" + rule + "\n"},
	"NUL hides the newline":   {"# \x00\n", "# \x00\n\n" + rule + "\n"},
	"NUL and no newline":      {"\x00", "\x00\n\n" + rule + "\n"},
	"blank line ends the NUL": {"# \x00\n\n", "# \x00\n\n" + rule + "\n"},
}

func TestAddLine(t *testing.T) {
	for name, tt := range edits {
		t.Run(name, func(t *testing.T) {
			got, present := addLine([]byte(tt.text), rule)
			if string(got) != tt.added || present {
				t.Errorf("addLine(%q) = %q, present %v, want %q", tt.text, got, present, tt.added)
			}
			again, present := addLine(got, rule)
			if string(again) != tt.added || !present {
				t.Errorf("addLine(%q) = %q, present %v, want it present", got, again, present)
			}
		})
	}
	// The rule is there, but libwrap would not see it.
	if got, present := addLine([]byte("a\n"+rule), rule); string(got) != "a\n"+rule+"\n" || present {
		t.Errorf("addLine to the rule without its newline = %q, present %v", got, present)
	}
}

func TestRemoveLine(t *testing.T) {
	for name, tt := range edits {
		t.Run(name, func(t *testing.T) {
			if got, removed := removeLine([]byte(tt.text), rule); string(got) != tt.text || removed {
				t.Errorf("removeLine(%q) = %q, removed %v", tt.text, got, removed)
			}
			got, removed := removeLine([]byte(tt.added), rule)
			if want := strings.TrimSuffix(tt.added, rule+"\n"); string(got) != want || !removed {
				t.Errorf("removeLine(%q) = %q, removed %v, want %q", tt.added, got, removed, want)
			}
		})
	}
	tests := map[string]struct{ text, want string }{
		"several":            {rule + "\na\n" + rule + "\n" + rule + "\n", "a\n"},
		"without a newline":  {"a\n" + rule, "a\n"},
		"of a longer rule":   {"a \\\n" + rule + "\n" + rule + "\n", "a \\\n" + rule + "\n"},
		"before an open end": {rule + "\na", "a"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, removed := removeLine([]byte(tt.text), rule)
			if string(got) != tt.want || !removed {
				t.Errorf("removeLine(%q) = %q, removed %v, want %q", tt.text, got, removed, tt.want)
			}
		})
	}
}

// Whatever else is in the file stays, and removing what was added leaves the
// file as it was but for newlines at its end.
func FuzzAddRemove(f *testing.F) {
	for _, tt := range edits {
		f.Add([]byte(tt.text), rule)
		f.Add([]byte(tt.added), rule)
	}
	f.Fuzz(func(t *testing.T, text []byte, line string) {
		if checkLine(line) != nil {
			return
		}
		original := slices.Clone(text)
		added, present := addLine(text, line)
		if present && !bytes.Equal(added, original) {
			t.Fatalf("%q is present in %q, but the text became %q", line, original, added)
		}
		if !bytes.HasPrefix(added, original) {
			t.Fatalf("adding %q to %q gave %q", line, original, added)
		}
		if again, present := addLine(added, line); !present || !bytes.Equal(again, added) {
			t.Fatalf("adding %q again to %q gave %q, present %v", line, added, again, present)
		}
		if _, there := removeLine(original, line); there {
			return
		}
		rest, removed := removeLine(added, line)
		newlines, kept := bytes.CutPrefix(rest, original)
		if !removed || !kept || len(newlines) > 2 || len(bytes.Trim(newlines, "\n")) > 0 {
			t.Fatalf("removing %q from %q gave %q, removed %v; it was %q", line, added, rest, removed, original)
		}
		if !bytes.Equal(text, original) {
			t.Fatalf("the text given was changed from %q to %q", original, text)
		}
	})
}

func BenchmarkAddLine(b *testing.B) {
	text := bytes.Repeat([]byte("ALL: 192.0.2.7 : DENY\n"), 100_000)
	b.ReportAllocs()
	for b.Loop() {
		addLine(text, "ALL: 192.0.2.8 : DENY")
	}
}
