package runcmd

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestExpand(t *testing.T) {
	four := Tokens{Source: netip.MustParseAddr("192.0.2.7"), Port: 11, Mode: ModeStealth}
	six := Tokens{Source: netip.MustParseAddr("fe80::1%eth0"), Port: 65535, Mode: ModeConnect}
	mapped := Tokens{Source: netip.MustParseAddr("::ffff:192.0.2.7"), Mode: ModeSUDP}
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
		"zone":                   {"$TARGET$ $PORT$ $MODE$", six, "fe80::1 65535 connect"},
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

func TestExpandWithoutSource(t *testing.T) {
	if got, err := Expand("true", Tokens{}); err == nil {
		t.Errorf("Expand without a source = %q, want an error", got)
	}
}

func TestExpandBan(t *testing.T) {
	tokens := Tokens{Source: netip.MustParseAddr("2001:db8::1")}
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
	f.Add("iptables -I INPUT -s $TARGET$ -j DROP # $PORT$ $MODE$", []byte{192, 0, 2, 7}, uint16(11), uint8(1))
	f.Add("$TARGET$PORT$MODE$", netip.MustParseAddr("::ffff:192.0.2.7").AsSlice(), uint16(0), uint8(9))
	f.Fuzz(func(t *testing.T, template string, address []byte, port uint16, mode uint8) {
		source, ok := netip.AddrFromSlice(address)
		if !ok {
			return
		}
		tokens := Tokens{source.WithZone("$(id)"), port, Mode(mode)}
		values := make(map[string]string)
		for _, token := range []string{"$TARGET$", "$PORT$", "$MODE$"} {
			value, err := Expand(token, tokens)
			if err != nil || value == "" || strings.Trim(value, "0123456789abcdefghijklmnopqrstuvwxyz.:") != "" {
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
