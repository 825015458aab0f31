package main

import (
	"context"
	"errors"
	"os"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs"
	"github.com/portsnare/portsnare/outputs/hostsdeny"
	"github.com/portsnare/portsnare/outputs/runcmd"
	"github.com/portsnare/portsnare/parsers/conf"
)

// classicBans does what PortSentry does about a source: it writes a line for TCP
// wrappers and runs commands, one after the other.
type classicBans struct {
	reactions conf.Ban // TCP and UDP alone
	mode      func(*detector.Probe) runcmd.Mode

	hosts  *hostsdeny.File
	runner *runcmd.Runner

	line, route, command string // templates; empty: there is none
	commandFirst         bool
}

var _ outputs.BanOutput = (*classicBans)(nil)

// newClassicBans returns what the blocks output.hostsdeny and output.runcmd ask
// for. create says whether a missing hosts.deny is made, as PortSentry 1.2 does.
func newClassicBans(cfg conf.Config, create bool, mode func(*detector.Probe) runcmd.Mode) *classicBans {
	wrappers, commands := cfg.Outputs["hostsdeny"], cfg.Outputs["runcmd"]
	path := wrappers.Text("file")
	if path == "" {
		path = "/etc/hosts.deny"
	}
	return &classicBans{
		reactions:    cfg.Ban,
		mode:         mode,
		hosts:        hostsdeny.New(path, create),
		runner:       &runcmd.Runner{Stdout: os.Stdout, Stderr: os.Stderr, IgnoreStatus: commands.Flag("ignore_status")},
		line:         wrappers.Text("line"),
		route:        commands.Text("route"),
		command:      commands.Text("command"),
		commandFirst: commands.Flag("command_first"),
	}
}

// ChangeBans acts on each ban in turn. A ban is in force if any act succeeded, as
// it is to PortSentry, which lifts none.
func (c *classicBans) ChangeBans(ctx context.Context, add, _ []detector.Ban) ([]outputs.Result, error) {
	results := make([]outputs.Result, len(add))
	for i := range add {
		results[i] = c.ban(ctx, &add[i])
	}
	return results, nil
}

// ban does what the reaction to the probe asks for, in the order of PortSentry's
// program, which is not that of its documentation.
func (c *classicBans) ban(ctx context.Context, ban *detector.Ban) outputs.Result {
	probe := &ban.Probe
	tokens := runcmd.Tokens{Source: ban.Source, Port: probe.Target.Port(), Mode: c.mode(probe)}
	var acts []detector.Act
	switch c.reaction(probe.Proto) {
	case conf.ReactCommand:
		acts = c.runCommand(ctx, acts, tokens)
	case conf.ReactBan:
		if c.commandFirst {
			acts = c.runCommand(ctx, acts, tokens)
		}
		acts = c.denyHost(ctx, acts, tokens)
		acts = c.dropRoute(ctx, acts, tokens)
		if !c.commandFirst {
			acts = c.runCommand(ctx, acts, tokens)
		}
	}
	result := outputs.Result{Acts: acts, Err: errors.New("nothing is configured to ban with")}
	for _, act := range acts {
		if result.Err = act.Err; act.Err == nil {
			break
		}
	}
	return result
}

func (c *classicBans) reaction(proto detector.Proto) conf.Reaction {
	if proto == detector.UDP {
		return c.reactions.UDP
	}
	return c.reactions.TCP
}

func (c *classicBans) denyHost(ctx context.Context, acts []detector.Act, tokens runcmd.Tokens) []detector.Act {
	if c.line == "" {
		return acts
	}
	act := detector.Act{Kind: detector.ActHostsDeny, Text: c.line}
	line, err := hostsdeny.Line(c.line, tokens)
	if errors.Is(err, runcmd.ErrNoTarget) {
		err = detector.ErrNoTarget
	}
	if err == nil {
		act.Text = line
		act.Present, err = c.hosts.Add(ctx, line)
	}
	act.Err = err
	return append(acts, act)
}

func (c *classicBans) dropRoute(ctx context.Context, acts []detector.Act, tokens runcmd.Tokens) []detector.Act {
	if c.route == "" {
		return acts
	}
	command, err := runcmd.ExpandBan(c.route, tokens)
	if errors.Is(err, runcmd.ErrNoTarget) {
		return append(acts, detector.Act{Kind: detector.ActRoute, Text: c.route, Err: detector.ErrNoTarget})
	}
	return append(acts, c.run(ctx, detector.ActRoute, command, err))
}

func (c *classicBans) runCommand(ctx context.Context, acts []detector.Act, tokens runcmd.Tokens) []detector.Act {
	if c.command == "" {
		return acts
	}
	command, err := runcmd.Expand(c.command, tokens)
	return append(acts, c.run(ctx, detector.ActCommand, command, err))
}

// run runs a command, unless err says that it could not be put together.
func (c *classicBans) run(ctx context.Context, kind detector.ActKind, command string, err error) detector.Act {
	if err == nil {
		err = c.runner.Run(ctx, command)
	}
	return detector.Act{Kind: kind, Text: command, Err: err}
}

// mode2 returns PortSentry 2's word for $MODE$.
func mode2(p *detector.Probe) runcmd.Mode {
	if p.Technique == detector.TechniqueConnect {
		return runcmd.ModeConnect
	}
	return runcmd.ModeStealth
}
