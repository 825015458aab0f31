package conf

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/detector"
)

func TestBanPolicy(t *testing.T) {
	tests := map[string]struct {
		ban  string
		want detector.BanPolicy
	}{
		"nothing set": {"", detector.BanPolicy{
			For: time.Hour, Max: 168 * time.Hour, Memory: 24 * time.Hour, Grace: 10 * time.Minute,
			Prefix6: 64, MaxPerMinute: 600, MaxBans: 100_000,
		}},
		"everything set": {
			`for = "30m", max = "2h", memory = "3h", grace = "4m", ipv6_prefix = 128, per_minute = 5, total = 6`,
			detector.BanPolicy{
				For: 30 * time.Minute, Max: 2 * time.Hour, Memory: 3 * time.Hour, Grace: 4 * time.Minute,
				Prefix6: 128, MaxPerMinute: 5, MaxBans: 6,
			},
		},
		"no end, no memory and no grace": {`for = "forever", memory = "0s", grace = "0s"`, detector.BanPolicy{
			For: detector.Forever, Max: detector.Forever, Memory: -1, Grace: -1,
			Prefix6: 64, MaxPerMinute: 600, MaxBans: 100_000,
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, _, err := parse("f.toml", []byte("detect.tcp_ports = \"1\"\nban = { "+tt.ban+" }\n"))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, c.Ban.Policy()); diff != "" {
				t.Errorf("Policy() (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNever(t *testing.T) {
	tests := map[string]struct {
		entry  string
		prefix string // empty: it is a name
	}{
		"IPv4 address":           {"192.0.2.1", "192.0.2.1/32"},
		"IPv4 prefix":            {"192.0.2.0/24", "192.0.2.0/24"},
		"IPv6 address":           {"2001:db8::1", "2001:db8::1/128"},
		"IPv6 prefix":            {"2001:db8::/32", "2001:db8::/32"},
		"IPv4 written as IPv6":   {"::ffff:192.0.2.1", "::ffff:192.0.2.1/128"},
		"name":                   {"admin.example.net", ""},
		"name of hex digits":     {"cafe.example", ""},
		"name with a final dot":  {"admin.example.net.", ""},
		"name without a domain":  {"gateway_1", ""},
		"name that starts digit": {"7.example.org", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, _, err := parse("f.toml", []byte("detect.tcp_ports = \"1\"\nban.never = [\""+tt.entry+"\"]\n"))
			if err != nil {
				t.Fatal(err)
			}
			want := NeverBan{Names: []string{tt.entry}}
			if tt.prefix != "" {
				want = NeverBan{Prefixes: []netip.Prefix{netip.MustParsePrefix(tt.prefix)}}
			}
			if diff := cmp.Diff(want, c.Ban.Never, opaque); diff != "" {
				t.Errorf("never = [%q] (-want +got):\n%s", tt.entry, diff)
			}
		})
	}
}

func TestHostNamesAreBounded(t *testing.T) {
	label := strings.Repeat("a", 63)
	long := strings.Join([]string{label, label, label, strings.Repeat("a", 61)}, ".")
	for name, want := range map[string]bool{
		label: true, label + "a": false, long: true, long + ".": true, long + "a": false,
		".": false, "a..b": false, "a.7": false, "a b": false, "a/b": false, "": false,
	} {
		if got := isHostName(name); got != want {
			t.Errorf("isHostName(%q) = %v, want %v", name, got, want)
		}
	}
}

// TestDefaultShowsHowToBan makes sure that what the embedded configuration says
// about bans, all its lines in force, is a configuration that bans.
func TestDefaultShowsHowToBan(t *testing.T) {
	text := strings.Replace(DefaultNative(), `evidence = "off"`, `evidence = "classic"`, 1)
	text = regexp.MustCompile(`(?m)^#([^ \n])`).ReplaceAllString(text, "$1")
	c, warnings, err := parse("default.toml", []byte(text))
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v, warnings %v", err, warnings)
	}
	if _, firewall := c.Outputs["firewall"]; !firewall || c.Ban.TCP != ReactBan || !c.Ban.DryRun || len(c.Ban.Never.Names) == 0 {
		t.Errorf("reads as %+v, outputs %v", c.Ban, c.Outputs)
	}
}
