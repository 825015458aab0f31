package firewall

import (
	"net/netip"
	"os/exec"
	"testing"

	"github.com/portsnare/portsnare/outputs/outputapi"
	"github.com/portsnare/portsnare/outputs/outputtest"
)

func newModule() outputapi.Module { return new(Module) }

func TestContract(t *testing.T) {
	worlds := map[string]outputtest.World{
		"nftables": {Settings: map[string]any{"backend": "nftables"}, Banned: func(t *testing.T) []netip.Prefix {
			if exec.Command("nft", "list", "table", "inet", "portsnare").Run() != nil {
				return nil
			}
			return prefixes(t, readNFT(t, "inet portsnare"))
		}},
		"ipset": {Settings: map[string]any{"backend": "ipset"}, Banned: func(t *testing.T) []netip.Prefix {
			if exec.Command("ipset", "list", "-n", "portsnare4").Run() != nil {
				return nil
			}
			return prefixes(t, readIPSet(t))
		}},
	}
	for name, world := range worlds {
		t.Run(name, func(t *testing.T) {
			outputtest.Run(t, newModule, outputtest.Options{World: func(*testing.T) outputtest.World { return world }})
		})
	}
}

// prefixes returns what the kernel keeps out, where no ban lies beside another.
func prefixes(t *testing.T, k kernel) []netip.Prefix {
	t.Helper()
	var all []netip.Prefix
	for s := range k {
		bits := s.first.BitLen()
		for bits > 0 && lastOf(netip.PrefixFrom(s.first, bits)) != s.last {
			bits--
		}
		all = append(all, netip.PrefixFrom(s.first, bits))
	}
	return all
}
