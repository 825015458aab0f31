package runcmd

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestExpand(t *testing.T) {
	four := Tokens{Source: netip.MustParsePrefix("192.0.2.7/32"), Port: 11, Mode: ModeStealth}
	six := Tokens{Source: netip.MustParsePrefix("fe80::1/128"), Port: 65535, Mode: ModeConnect}
	mapped := Tokens{Source: netip.MustParsePrefix("::ffff:192.0.2.7/128"), Mode: ModeSUDP}
	network := Tokens{Source: netip.MustParsePrefix("2001:db8:0:1:ffff::/64")}
	mappedNetwork := Tokens{Source: netip.MustParsePrefix("::ffff:192.0.2.7/120")}
	tests := map[string]struct {
		template string
		tokens   Tokens
		want     string
	}{
		"every token, each time": {"/bin/true $TARGET$ $PORT$ $MODE$ $TARGET$", four, "/bin/true 192.0.2.7 11 stealth 192.0.2.7"},
		"no token":               {"echo $TARGET $$ $PORT", four, "echo $TARGET $$ $PORT"},
		"lower case is no token": {"$target$", four, "$target$"},
		"tokens side by side":    {"$TARGET$$PORT$", four, "192.0.2.711"},
		"shared dollar":          {"$TARGET$PORT$", four, "192.0.2.7PORT$"},
		"IPv6":                   {"$TARGET$ $PORT$ $MODE$", six, "fe80::1 65535 connect"},
		"prefix":                 {"$TARGET$", network, "2001:db8:0:1::/64"},
		"IPv4-mapped prefix":     {"$TARGET$", mappedNetwork, "192.0.2.0/24"},
		"IPv4-mapped":            {"$TARGET$ $PORT$ $MODE$", mapped, "192.0.2.7 0 sudp"},
		"mode unknown":           {"$MODE$", Tokens{Source: four.Source}, "unknown"},
		"no such mode":           {"$MODE$", Tokens{Source: four.Source, Mode: 200}, "unknown"},
		"empty":                  {"", four, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got, err := Expand(tt.template, tt.tokens); got != tt.want || err != nil {
				t.Errorf("Expand(%q, %v) = %q, %v, want %q", tt.template, tt.tokens, got, err, tt.want)
			}
		})
	}
}

func TestExpandRefuses(t *testing.T) {
	for name, source := range map[string]netip.Prefix{
		"no source":         {},
		"everybody":         netip.MustParsePrefix("::/0"),
		"everybody by IPv4": netip.MustParsePrefix("::ffff:0.0.0.0/96"),
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := Expand("true", Tokens{Source: source}); err == nil {
				t.Errorf("Expand for %v = %q, want an error", source, got)
			}
		})
	}
}

func TestExpandBan(t *testing.T) {
	tokens := Tokens{Source: netip.MustParsePrefix("2001:db8::1/128")}
	if got, err := ExpandBan("route add $TARGET$", tokens); got != "route add 2001:db8::1" || err != nil {
		t.Errorf("ExpandBan = %q, %v", got, err)
	}
	if got, err := ExpandBan("route add $PORT$", tokens); !errors.Is(err, ErrNoTarget) {
		t.Errorf("ExpandBan without a target = %q, %v, want %v", got, err, ErrNoTarget)
	}
}

func TestParseMode(t *testing.T) {
	for _, word := range []string{"stealth", "connect", "tcp", "stcp", "atcp", "udp", "sudp", "audp"} {
		if mode, err := ParseMode(word); mode.String() != word || err != nil {
			t.Errorf("ParseMode(%q) = %v, %v", word, mode, err)
		}
	}
	for _, word := range []string{"", "STEALTH", "tcp;id"} {
		if mode, err := ParseMode(word); err == nil {
			t.Errorf("ParseMode(%q) = %v, want an error", word, mode)
		}
	}
}

// What is put into a template is harmless to a shell, and the rest of the
// template stays as it is.
func FuzzExpand(f *testing.F) {
	f.Add("iptables -I INPUT -s $TARGET$ -j DROP # $PORT$ $MODE$", []byte{192, 0, 2, 7}, uint8(32), uint16(11), uint8(1))
	f.Add("$TARGET$PORT$MODE$", netip.MustParseAddr("::ffff:192.0.2.7").AsSlice(), uint8(128), uint16(0), uint8(9))
	f.Fuzz(func(t *testing.T, template string, address []byte, bits uint8, port uint16, mode uint8) {
		addr, _ := netip.AddrFromSlice(address)
		tokens := Tokens{netip.PrefixFrom(addr.WithZone("$(id)"), int(bits)), port, Mode(mode)}
		if _, err := Source(tokens.Source); err != nil {
			return
		}
		values := make(map[string]string)
		for _, token := range []string{"$TARGET$", "$PORT$", "$MODE$"} {
			value, err := Expand(token, tokens)
			if err != nil || value == "" || strings.Trim(value, "0123456789abcdefghijklmnopqrstuvwxyz.:/") != "" {
				t.Fatalf("Expand(%q) = %q, %v", token, value, err)
			}
			values[token] = value
		}
		got, err := Expand(template, tokens)
		if want := expandSlowly(template, values); got != want || err != nil {
			t.Fatalf("Expand(%q) = %q, %v, want %q", template, got, err, want)
		}
	})
}

// expandSlowly reads from left to right, one byte at a time.
func expandSlowly(template string, values map[string]string) string {
	var b strings.Builder
next:
	for template != "" {
		for token, value := range values {
			if rest, found := strings.CutPrefix(template, token); found {
				b.WriteString(value)
				template = rest
				continue next
			}
		}
		b.WriteByte(template[0])
		template = template[1:]
	}
	return b.String()
}
