package names

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"
)

func TestSafe(t *testing.T) {
	label := strings.Repeat("a", maxLabel)
	longest := strings.Repeat(label+".", 3) + strings.Repeat("a", maxName-3*(maxLabel+1))
	tests := map[string]struct{ in, want string }{
		"a host":                           {"scanner.example.net", "scanner.example.net"},
		"the root's dot":                   {"scanner.example.net.", "scanner.example.net"},
		"one label":                        {"gateway", "gateway"},
		"upper case":                       {"Scanner.EXAMPLE.Net", "scanner.example.net"},
		"address with letters around":      {"host-203.0.113.7.example.net", "host-203.0.113.7.example.net"},
		"underscore":                       {"_dmarc.my_host.example", "_dmarc.my_host.example"},
		"punycode":                         {"xn--bcher-kva.example.xn--p1ai", "xn--bcher-kva.example.xn--p1ai"},
		"longest label":                    {label + ".example", label + ".example"},
		"longest name":                     {longest, longest},
		"longest name with the root's dot": {longest + ".", longest},

		"nothing":                  {"", ""},
		"the root":                 {".", ""},
		"two dots at the end":      {"scanner.example..", ""},
		"empty label":              {"scanner..example", ""},
		"empty first label":        {".example", ""},
		"label too long":           {label + "a.example", ""},
		"name too long":            {longest + "a", ""},
		"64 KiB":                   {strings.Repeat("a.", 1<<15) + "example", ""},
		"option":                   {"-oProxyCommand.example", ""},
		"hyphen at a label's end":  {"scanner-.example", ""},
		"IPv4 address":             {"198.51.100.7", ""},
		"the same with a dot":      {"198.51.100.7.", ""},
		"IPv6 address":             {"2001:db8::7", ""},
		"mapped address":           {"::ffff:198.51.100.7", ""},
		"zone":                     {"fe80::1%eth0", ""},
		"short IPv4 address":       {"198.51", ""},
		"hexadecimal address":      {"0xc6336407", ""},
		"hexadecimal last byte":    {"198.51.100.0x7", ""},
		"octal address":            {"0306.063.0144.07", ""},
		"number":                   {"3325256711", ""},
		"digit first in the last":  {"scanner.3xample", ""},
		"underscore first in last": {"scanner._tcp", ""},
		"blank":                    {"scanner example", ""},
		"newline":                  {"scanner.example\nattackalert: forged", ""},
		"carriage return":          {"scanner.example\r", ""},
		"NUL":                      {"scanner.example\x00", ""},
		"escape sequence":          {"\x1b[2Jscanner.example", ""},
		"forged v2 field":          {"x) protocol: [TCP] blocked: [true", ""},
		"forged bracket":           {"x]blocked:[true", ""},
		"forged v1 field":          {"x/198.51.100.7", ""},
		"shell":                    {"$(reboot).example", ""},
		"letters beyond ASCII":     {"b\u00fccher.example", ""},
		"Kelvin sign, lower: k":    {"\u212aelvin.example", ""},
		"no UTF-8":                 {"\xff.example", ""},
		"escaped dot":              {`scanner\.example`, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := Safe(test.in); got != test.want {
				t.Errorf("Safe(%.80q) = %q, want %q", test.in, got, test.want)
			}
		})
	}
}

func TestChoiceDoesNotDependOnTheOrder(t *testing.T) {
	tests := map[string]struct {
		names []string
		want  string
	}{
		"none":                   {nil, ""},
		"one":                    {[]string{"a.example."}, "a.example"},
		"several":                {[]string{"c.example.", "a.example.", "b.example."}, "a.example"},
		"several, other order":   {[]string{"b.example.", "c.example.", "a.example."}, "a.example"},
		"case does not count":    {[]string{"b.example.", "C.example.", "A.example."}, "a.example"},
		"unsafe ones sort first": {[]string{"198.51.100.7.", "b.example.", " a.example."}, "b.example"},
		"only unsafe ones":       {[]string{"198.51.100.7.", "a b.", "\n"}, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := choose(test.names); got != test.want {
				t.Errorf("choose(%q) = %q, want %q", test.names, got, test.want)
			}
		})
	}
}

// hostName is what Safe promises, in another notation.
var hostName = regexp.MustCompile(`^([a-z0-9_]([a-z0-9_-]*[a-z0-9_])?\.)*[a-z]([a-z0-9_-]*[a-z0-9_])?$`)

func FuzzSafe(f *testing.F) {
	for _, seed := range []string{
		"scanner.example.net.", "198.51.100.7", "2001:db8::7", "x]\nblocked: [true", "0xc6336407",
		"xn--bcher-kva.example", "-a.b", "a..b", strings.Repeat("a", 64), strings.Repeat("a.", 127),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		got := Safe(name)
		if got == "" {
			if len(name) <= 63 && hostName.MatchString(name) {
				t.Fatalf("Safe(%q) refused a host name", name)
			}
			return
		}
		if !hostName.MatchString(got) || len(got) > 253 {
			t.Fatalf("Safe(%q) = %q", name, got)
		}
		if addr, err := netip.ParseAddr(got); err == nil {
			t.Fatalf("Safe(%q) = %q, the address %v", name, got, addr)
		}
		if again := Safe(got); again != got {
			t.Fatalf("Safe(%q) = %q, and of that %q", name, got, again)
		}
	})
}
