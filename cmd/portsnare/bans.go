package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/control"
	"github.com/portsnare/portsnare/parsers/conf"
)

// socketVariable names the daemon's socket for those who do not want to write it
// each time.
const socketVariable = "PORTSNARE_SOCKET"

// A remote is what the commands that talk to the daemon have in common.
type remote struct {
	socket string
	json   bool
}

// command adds the options of a remote to a command.
func (r *remote) command(cmd *cobra.Command) *cobra.Command {
	socket := conf.DefaultControl
	if named := os.Getenv(socketVariable); named != "" {
		socket = named
	}
	cmd.Flags().StringVar(&r.socket, "socket", socket, "the daemon's control `SOCKET` (or "+socketVariable+")")
	cmd.Flags().BoolVar(&r.json, "json", false, "print JSON")
	return cmd
}

func (r *remote) client() *control.Client { return control.NewClient(r.socket) }

// print prints an answer as JSON, or by its table.
func (r *remote) print(w io.Writer, answer any, table func(w io.Writer)) error {
	if r.json {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(answer)
	}
	columns := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	table(columns)
	return columns.Flush()
}

func newStatus() *cobra.Command {
	r := new(remote)
	return r.command(&cobra.Command{
		Use:   "status",
		Short: "Show how the daemon is",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := r.client().Status(cmd.Context())
			if err != nil {
				return err
			}
			return r.print(cmd.OutOrStdout(), s, func(w io.Writer) { printStatus(w, &s) })
		},
	})
}

func printStatus(w io.Writer, s *control.Status) {
	banning := "nobody"
	switch {
	case s.DryRun:
		banning = "nobody (dry run)"
	case s.Banning:
		banning = "scanners"
	}
	config := s.Config
	if config == "" {
		config = "built in"
	}
	for _, row := range [][2]string{
		{"version", s.Version},
		{"process", strconv.Itoa(s.PID)},
		{"watching since", s.Since.Local().Format(time.RFC3339)},
		{"mode", s.Mode},
		{"configuration", config},
		{"probes", fmt.Sprintf("%d, of these %d reported", s.Probes, s.Reported)},
		{"lost", fmt.Sprintf("%d packets and events", s.Lost)},
		{"bans", banning},
		{"in force", strconv.Itoa(s.Bans)},
		{"since the start", fmt.Sprintf("%d banned, %d failed, %d spared, %d refused", s.Banned, s.Failed, s.Spared, s.Refused)},
	} {
		fmt.Fprintf(w, "%s\t%s\n", row[0], row[1])
	}
}

func newBans() *cobra.Command {
	r := new(remote)
	return r.command(&cobra.Command{
		Use:   "bans",
		Short: "List who is banned",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			bans, err := r.client().Bans(cmd.Context())
			if err != nil {
				return err
			}
			return r.printBans(cmd.OutOrStdout(), bans)
		},
	})
}

func (r *remote) printBans(w io.Writer, bans []control.Ban) error {
	return r.print(w, bans, func(w io.Writer) {
		if len(bans) > 0 {
			fmt.Fprintln(w, "SOURCE\tUNTIL\tBY\tREASON")
		}
		for _, b := range bans {
			until := "lifted"
			if b.Until != nil {
				until = b.Until.Local().Format(time.DateTime)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", sourceText(b.Source), until, b.Origin, b.Reason)
		}
	})
}

// sourceText writes a host without its length.
func sourceText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func newBan() *cobra.Command {
	r := new(remote)
	var lasts, reason string
	ban := r.command(&cobra.Command{
		Use:   "ban ADDRESS...",
		Short: "Ban addresses or networks",
		Long: `Ban addresses or networks (192.0.2.0/24), in every output that bans. Who must
never be banned is not; "portsnare allow" lists them.`,
		Example: `  portsnare ban 192.0.2.1
  portsnare ban --for 24h --reason "scans us from everywhere" 2001:db8::/32`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			prefixes, err := parsePrefixes(args)
			if err != nil {
				return err
			}
			length, err := parseLength(lasts)
			if err != nil {
				return fmt.Errorf("--for: %w", err)
			}
			var bans []control.Ban
			var faults []error
			for _, prefix := range prefixes {
				b, err := r.client().Ban(cmd.Context(), control.BanRequest{Source: prefix, For: length, Reason: reason})
				if err != nil {
					faults = append(faults, fmt.Errorf("%s: %w", sourceText(prefix), err))
					continue
				}
				bans = append(bans, b)
			}
			return errors.Join(append(faults, r.printBans(cmd.OutOrStdout(), bans))...)
		},
	})
	ban.Flags().StringVar(&lasts, "for", "forever", "lift the ban after `TIME`, such as 90m, 24h or 7d")
	ban.Flags().StringVar(&reason, "reason", "", "`TEXT` to show with the ban")
	return ban
}

// parseLength reads how long a ban is to last; zero stands for ever.
func parseLength(text string) (control.Duration, error) {
	length, err := conf.ParseDuration(text)
	if length == detector.Forever {
		length = 0
	}
	return control.Duration(length), err
}

// everybody are the prefixes that hold all addresses.
var everybody = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

func newUnban() *cobra.Command {
	r := new(remote)
	var all bool
	unban := r.command(&cobra.Command{
		Use:   "unban {ADDRESS... | --all}",
		Short: "Lift bans",
		Long: `Lift the bans of addresses, and of everything inside networks, in every output. For
a while (ban.grace) the daemon does not ban them again by itself. To have somebody
never banned again, use "portsnare allow".`,
		Example: `  portsnare unban 192.0.2.1
  portsnare unban --all`,
		RunE: func(cmd *cobra.Command, args []string) error {
			prefixes, err := parsePrefixes(args)
			switch {
			case err != nil:
				return err
			case all:
				prefixes = everybody
			}
			var lifted []control.Ban
			var faults []error
			for _, prefix := range prefixes {
				bans, err := r.client().Unban(cmd.Context(), prefix)
				if err == nil && len(bans) == 0 && !all {
					err = errors.New("is not banned")
				}
				if err != nil {
					faults = append(faults, fmt.Errorf("%s: %w", sourceText(prefix), err))
				}
				lifted = append(lifted, bans...)
			}
			return errors.Join(append(faults, r.printBans(cmd.OutOrStdout(), lifted))...)
		},
	})
	unban.Flags().BoolVar(&all, "all", false, "lift all bans")
	unban.Args = func(cmd *cobra.Command, args []string) error {
		if all {
			return cobra.NoArgs(cmd, args)
		}
		return cobra.MinimumNArgs(1)(cmd, args)
	}
	return unban
}

func newAllow() *cobra.Command {
	r := new(remote)
	var remove bool
	allow := r.command(&cobra.Command{
		Use:   "allow [ADDRESS...]",
		Short: "Have addresses or networks never banned, or list who is not",
		Long: `Have addresses or networks never banned, and lift the bans that there are of them.
The daemon remembers it over a restart. Without an address, list who is never
banned, and why.`,
		Example: `  portsnare allow
  portsnare allow 192.0.2.0/24
  portsnare allow --remove 192.0.2.0/24`,
		RunE: func(cmd *cobra.Command, args []string) error {
			prefixes, err := parsePrefixes(args)
			switch {
			case err != nil:
				return err
			case len(prefixes) == 0:
				return r.listAllowed(cmd)
			}
			var lifted []control.Ban
			var faults []error
			for _, prefix := range prefixes {
				request := control.AllowRequest{Prefix: prefix}
				if remove {
					err = r.client().Disallow(cmd.Context(), request)
				} else {
					var bans []control.Ban
					bans, err = r.client().Allow(cmd.Context(), request)
					lifted = append(lifted, bans...)
				}
				if err != nil {
					faults = append(faults, fmt.Errorf("%s: %w", sourceText(prefix), err))
				}
			}
			return errors.Join(append(faults, r.printBans(cmd.OutOrStdout(), lifted))...)
		},
	})
	allow.Flags().BoolVar(&remove, "remove", false, "take back an earlier allow")
	allow.Args = func(cmd *cobra.Command, args []string) error {
		if remove {
			return cobra.MinimumNArgs(1)(cmd, args)
		}
		return nil
	}
	return allow
}

func (r *remote) listAllowed(cmd *cobra.Command) error {
	all, err := r.client().Allowed(cmd.Context())
	if err != nil {
		return err
	}
	return r.print(cmd.OutOrStdout(), all, func(w io.Writer) {
		fmt.Fprintln(w, "NEVER BANNED\tWHY")
		for _, a := range all {
			fmt.Fprintf(w, "%s\t%s\n", sourceText(a.Prefix), a.Why)
		}
	})
}

func newOutputs() *cobra.Command {
	r := new(remote)
	return r.command(&cobra.Command{
		Use:   "outputs",
		Short: "Show how the outputs are",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := r.client().Outputs(cmd.Context())
			if err != nil {
				return err
			}
			return r.print(cmd.OutOrStdout(), all, func(w io.Writer) {
				fmt.Fprintln(w, "OUTPUT\tKIND\tSTATE\tDELIVERED\tWAITING\tDROPPED\tRESTARTS\tFAULT")
				for _, o := range all {
					fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\n", o.Name, o.Kind, o.State, o.Delivered, o.Waiting, o.Dropped, o.Restarts, o.Fault)
				}
			})
		},
	})
}

// parsePrefixes reads the arguments of a command.
func parsePrefixes(args []string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for _, arg := range args {
		prefix, err := control.ParsePrefix(arg)
		if err != nil {
			return nil, err
		}
		prefixes = append(prefixes, prefix)
	}
	return prefixes, nil
}
